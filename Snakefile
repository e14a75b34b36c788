# The workflow is in workflow/Snakefile; this file lets `snakemake` find it from the root.
include: "workflow/Snakefile"


# The default target of an included file is not taken over, so it is named once more.
rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
    message:
        "everything is there"
