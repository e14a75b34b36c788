rule prepare:
    input:
        "<results>/data/{dataset}/dataset.h5mu",
    output:
        input="<results>/prepared/{dataset}/{data_condition}/input.h5mu",
        truth="<results>/prepared/{dataset}/{data_condition}/truth.parquet",
    log:
        "<results>/logs/prepare/{dataset}/{data_condition}.log",
    wildcard_constraints:
        data_condition=r"(?!(prediction|imputation)([+/]|$))[^/@]+",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=60,
    params:
        settings=lambda wildcards: DataCondition.parse(wildcards.data_condition).arguments(),
        code=code("prepare.py"),
    message:
        "prepare {wildcards.dataset} ({wildcards.data_condition})"
    script:
        "../../scripts/prepare.py"


# A prediction has a file more: the test cells' values, which no method sees. So has an imputation:
# the open peaks that it hides.
rule prepare_prediction:
    input:
        "<results>/data/{dataset}/dataset.h5mu",
    output:
        input="<results>/prepared/{dataset}/{data_condition}/input.h5mu",
        truth="<results>/prepared/{dataset}/{data_condition}/truth.parquet",
        solution="<results>/prepared/{dataset}/{data_condition}/solution.h5ad",
    log:
        "<results>/logs/prepare/{dataset}/{data_condition}.log",
    wildcard_constraints:
        data_condition=r"(prediction\+[^/@]+|imputation(\+[^/@]+)?)",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=60,
    params:
        settings=lambda wildcards: DataCondition.parse(wildcards.data_condition).arguments(),
        code=code("prepare.py"),
    message:
        "prepare {wildcards.dataset} ({wildcards.data_condition})"
    script:
        "../../scripts/prepare.py"


rule guidance:
    input:
        prepared_input,
    output:
        "<results>/prepared/{dataset}/{condition}/guidance.npz",
    log:
        "<results>/logs/guidance/{dataset}/{condition}.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=30,
    params:
        settings=lambda wildcards: Condition.parse(wildcards.condition).guidance.arguments(),
        code=code("guidance.py"),
    message:
        "link features of {wildcards.dataset} ({wildcards.condition})"
    script:
        "../../scripts/guidance.py"
