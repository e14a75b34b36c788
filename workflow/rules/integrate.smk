# A method that fails, takes too long or too much memory ends with status.json and an embedding of
# 0 cells: its row in the tables says so, and nothing else stops.
rule integrate:
    input:
        data=prepared_input,
        guidance=guidance_of,
        truth=truth_of,
    output:
        status="<results>/runs/{dataset}/{condition}/{method}/{seed}/status.json",
        embedding="<results>/runs/{dataset}/{condition}/{method}/{seed}/embedding.h5ad",
    log:
        "<results>/logs/integrate/{dataset}/{condition}/{method}/{seed}.log",
    benchmark:
        "<results>/benchmarks/integrate/{dataset}/{condition}/{method}/{seed}.jsonl"
    conda:
        "../../envs/train.yaml"
    threads: lambda wildcards: limits(wildcards).threads
    resources:
        # Beyond the limits of the run itself: time to load and write, memory to supervise.
        mem_mb=lambda wildcards, attempt: (limits(wildcards).memory_limit + 1000) * attempt,
        runtime=lambda wildcards: limits(wildcards).time_limit // 60 + 10,
        gpu=gpus,
    params:
        code=method_code,
    message:
        "integrate {wildcards.method} on {wildcards.dataset} ({wildcards.condition}), seed {wildcards.seed}"
    script:
        "../../scripts/integrate.py"
