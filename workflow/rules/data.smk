rule download:
    output:
        "<results>/data/{dataset}/raw/files.json",
    log:
        "<results>/logs/download/{dataset}.log",
    retries: 2
    localrule: True
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        entry=entry_fields,
    message:
        "download {wildcards.dataset}"
    script:
        "../../scripts/download.py"


rule assemble:
    input:
        files=raw_files,
    output:
        "<results>/data/{dataset}/dataset.h5mu",
    log:
        "<results>/logs/assemble/{dataset}.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=60,
    params:
        entry=entry_fields,
        code=code("assemble.py"),
    message:
        "assemble {wildcards.dataset}"
    script:
        "../../scripts/assemble.py"
