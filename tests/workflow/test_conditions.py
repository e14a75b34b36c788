from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from scbraid.conditions import (
    Condition,
    DataCondition,
    GuidanceCondition,
    MethodSpec,
    number_text,
)
from scbraid.errors import ConfigError, UnknownNameError

# One value other than the default for every setting.
OTHER = {
    "task": "paired",
    "cells": 1500,
    "subsample_seed": 3,
    "n_top_genes": 500,
    "n_pcs": 20,
    "lsi": "signac3",
    "n_lsi": 30,
    "use_batch": True,
    "layers": ("rna", "atac"),
    "source": "rna",
    "split": "weighted",
    "test_share": 0.3,
    "n_test": 100,
    "test_batches": ("b1", "s3.d7"),
    "split_seed": 4,
    "atac_only": 0.5,
    "atac_only_seed": 2,
    "hidden_share": 0.4,
    "hidden_seed": 3,
    "region": "promoter",
    "promoter_len": 1000,
    "extend_range": 150_000,
    "decay": "power",
    "corrupt_rate": 0.2,
    "corrupt_kind": "drop",
    "corrupt_seed": 7,
}


def test_default_condition_is_one_word() -> None:
    assert Condition().slug == "unpaired"
    assert Condition.parse("unpaired") == Condition()


@pytest.mark.parametrize(
    "slug",
    [
        "paired",
        "unpaired+cells=1500",
        "unpaired+cells=1500+subsample_seed=1",
        "unpaired@corrupt_rate=0.2",
        "unpaired@corrupt_rate=0.2+corrupt_seed=1",
        "hybrid+cells=1500+atac_only=0.5+atac_only_seed=1",
        "imputation+hidden_share=0.5+hidden_seed=1",
        "paired+use_batch=true+layers=rna-atac@region=promoter+extend_range=150000+decay=power",
    ],
)
def test_canonical_slugs_stay_as_they_are(slug: str) -> None:
    assert Condition.parse(slug).slug == slug


def test_every_setting_round_trips_alone_and_with_any_other() -> None:
    names = [
        field.name
        for owner in (DataCondition, GuidanceCondition)
        for field in dataclasses.fields(owner)
    ]
    assert set(names) == set(OTHER)
    for chosen in itertools.combinations(names, 2):
        condition = Condition.from_settings({name: OTHER[name] for name in chosen})
        assert Condition.parse(condition.slug) == condition, chosen
        assert re.fullmatch(r"[A-Za-z0-9_.=+@\-]+", condition.slug)


@pytest.mark.parametrize(
    ("slug", "canonical"),
    [
        ("prediction+source=rna", None),
        ("prediction+n_pcs=50+source=adt+split=weighted+n_test=1000", None),
        ("matching+split=batch+test_batches=s1d2-B.4", None),
        ("matching+test_share=0.1+split_seed=3", None),
        ("joint+cells=500+use_batch=true", None),
        # What changes nothing is left out.
        ("matching+use_batch=true", "matching"),
        ("joint+source=rna", "joint"),
        ("prediction+source=rna+n_test=9+test_share=0.4", "prediction+n_test=9+source=rna"),
        (
            "matching+split=batch+test_batches=b1+n_test=9+test_share=0.4+split_seed=5",
            "matching+split=batch+test_batches=b1",
        ),
        ("unpaired+test_share=0.3+split=weighted+source=rna", "unpaired"),
    ],
)
def test_tasks_with_a_split_have_slugs(slug: str, canonical: str | None) -> None:
    condition = Condition.parse(slug)
    expected = slug if canonical is None else Condition.parse(canonical).slug
    assert condition.slug == expected
    assert Condition.parse(condition.slug) == condition
    assert condition.data.use_batch == (condition.data.task == "matching" or "use_batch" in slug)


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("prediction", "task prediction needs the setting source, such as source=rna"),
        ("matching+split=batch", "split is 'batch' and test_batches is none"),
        ("matching+test_batches=b1-b2", "split is 'random' and test_batches is b1-b2"),
        ("joint+test_share=1", "expected a number above 0 and below 1"),
        ("joint+n_test=0", "expected a whole number, at least 1"),
        ("matching+split=batch+test_batches=a--b", "expected batch names of letters"),
    ],
)
def test_wrong_splits_are_refused(slug: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Condition.parse(slug)


def test_order_and_stated_defaults_do_not_matter() -> None:
    one = Condition.parse("unpaired+n_pcs=50+cells=100@corrupt_seed=2+corrupt_rate=0.50")
    other = Condition.parse("unpaired+cells=100+n_pcs=50+lsi=glue@corrupt_rate=.5+corrupt_seed=2")
    assert one == other
    assert one.slug == "unpaired+cells=100+n_pcs=50@corrupt_rate=0.5+corrupt_seed=2"


def test_settings_without_effect_are_dropped() -> None:
    assert Condition.parse("unpaired+subsample_seed=4").slug == "unpaired"
    assert Condition.parse("unpaired@corrupt_seed=4+corrupt_kind=drop").slug == "unpaired"
    assert Condition.parse("paired+atac_only=0.5+atac_only_seed=1").slug == "paired"
    assert Condition.parse("hybrid+atac_only=0+atac_only_seed=1").slug == "hybrid+atac_only=0"


def test_without_guidance_keeps_the_data_part() -> None:
    condition = Condition.parse("unpaired+cells=9@corrupt_rate=1")
    assert condition.without_guidance().slug == "unpaired+cells=9"


def test_arguments_name_every_setting_with_its_type() -> None:
    condition = Condition.parse("paired+cells=10+layers=rna-adt@corrupt_rate=1")
    assert condition.data.arguments()["cells"] == 10
    assert condition.data.arguments()["layers"] == ("rna", "adt")
    rate = condition.guidance.arguments()["corrupt_rate"]
    assert rate == 1.0
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("slug", "error", "words"),
    [
        ("unpared", UnknownNameError, "unknown task 'unpared'; did you mean 'unpaired'?"),
        ("unpaired+cels=3", UnknownNameError, "did you mean 'cells'?"),
        ("unpaired@corupt_rate=1", UnknownNameError, "did you mean 'corrupt_rate'?"),
        ("unpaired+lsi=signac2", UnknownNameError, "unknown lsi 'signac2'"),
        ("unpaired+cells=many", ConfigError, "'cells' is 'many'; expected a whole number"),
        ("unpaired+cells=1", ConfigError, "at least 2"),
        ("unpaired+use_batch=maybe", ConfigError, "expected true or false"),
        ("unpaired+layers=RNA", ConfigError, "layer names joined by '-'"),
        ("unpaired@corrupt_rate=1.5", ConfigError, "a number from 0 to 1"),
        ("unpaired@corrupt_rate=nan", ConfigError, "a number from 0 to 1"),
        ("unpaired+cells", ConfigError, "expected key=value"),
        ("unpaired+cells=3+cells=4", ConfigError, "gives 'cells' twice"),
        ("unpaired@", ConfigError, "ends with '@'"),
        ("", ConfigError, "setting 'task' is ''"),
    ],
)
def test_bad_conditions_are_refused_with_a_reason(
    slug: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        Condition.parse(slug)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.2, 1 / 3, 1e-5, 1234567.5])
def test_number_text_reads_back(value: float) -> None:
    assert float(number_text(value)) == value


@pytest.mark.parametrize("rate", [0.1 + 0.2, 1 / 3])
def test_rates_of_any_precision_round_trip(rate: float) -> None:
    condition = Condition.from_settings({"corrupt_rate": rate})
    assert Condition.parse(condition.slug).guidance.corrupt_rate == rate


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("glue", "glue"),
        ("glue.default", "glue"),
        ("glue.paper", "glue.paper"),
        ("glue:latent_dim=20", "glue+latent_dim=20"),
        ("glue.paper:b=x,a=1e-3", "glue.paper+a=1e-3,b=x"),
    ],
)
def test_method_specifications_round_trip(text: str, slug: str) -> None:
    spec = MethodSpec.parse(text)
    assert spec.slug == slug
    assert MethodSpec.parse(spec.slug) == spec == MethodSpec.parse(str(spec))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("glue:latent_dim", "expected key=value"),
        ("glue:a=1,a=2", "gives the option 'a' twice"),
        ("glue:path=/tmp", "becomes a folder name"),
        ("glue/..", "expected name[.preset][:key=value,key=value]"),
        ("", "expected name"),
    ],
)
def test_bad_method_specifications_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MethodSpec.parse(text)
    assert words in str(caught.value)


def test_choices_are_those_of_the_modules_that_do_the_work() -> None:
    from scbraid.guidance.anchored import DECAYS
    from scbraid.guidance.edit import CORRUPTIONS
    from scbraid.guidance.intervals import REGIONS
    from scbraid.prepare.spaces import LSI_FORMS

    stated = {
        field.name: field.metadata["choices"]
        for owner in (DataCondition, GuidanceCondition)
        for field in dataclasses.fields(owner)
    }
    assert set(stated["lsi"]) == set(LSI_FORMS)
    assert set(stated["corrupt_kind"]) == set(CORRUPTIONS)
    assert set(stated["decay"]) == set(DECAYS)
    assert set(stated["region"]) == set(REGIONS)
