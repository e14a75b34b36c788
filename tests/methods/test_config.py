from __future__ import annotations

import dataclasses
import json

import pytest

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.methods.config import MethodConfig, option
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.method import GlueMethod


@dataclasses.dataclass(frozen=True)
class Toy(MethodConfig):
    width: int = option(5, "a width", ge=1)
    rate: float = option(0.1, "a rate", gt=0, lt=1)
    share: float = option(0.5, "a share", ge=0, le=1)
    kind: str = option("plain", "a kind", choices=("plain", "fancy"))
    on: bool = option(True, "a switch")
    limit: int | None = option(None, "a limit", ge=1)


@dataclasses.dataclass(frozen=True)
class Named(MethodConfig):
    kind: str = option("plain", "a kind", choices=("plain", "none"))


def test_texts_are_read_as_the_type_of_the_field():
    toy = Toy.from_options(
        {"width": "7", "rate": "1e-3", "kind": "fancy", "on": "False", "limit": "3"}
    )
    assert toy == Toy(width=7, rate=1e-3, kind="fancy", on=False, limit=3)
    assert type(toy.width) is int
    assert type(toy.rate) is float
    assert Toy.from_options({"limit": "none"}).limit is None
    assert Named.from_options({"kind": "none"}).kind == "none"  # a word like any other there
    assert Toy.from_options({"rate": "0.5"}).rate == 0.5
    assert Toy.from_options({"share": 1}).share == 1.0


def test_options_win_over_the_preset():
    assert Toy.from_options({"width": 2}, {"width": 3, "on": False}) == Toy(width=2, on=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "Toy.width is 0; expected a value >= 1"),
        ({"rate": 0}, "Toy.rate is 0.0; expected a value > 0"),
        ({"rate": 1.0}, "Toy.rate is 1.0; expected a value < 1"),
        ({"share": 1.5}, "Toy.share is 1.5; expected a value <= 1"),
        ({"kind": "fanci"}, "Toy.kind: unknown choice 'fanci'; did you mean 'fancy'"),
        ({"width": "many"}, "option 'width' is 'many'; expected int"),
        ({"width": 2.5}, "option 'width' is 2.5; expected int"),
        ({"width": True}, "Toy.width is True; expected int"),
        ({"on": "yes"}, "option 'on' is 'yes'; expected bool"),
        ({"on": 1}, "option 'on' is 1; expected bool"),
        ({"width": None}, "option 'width' is None; expected int"),
        ({"limit": 0}, "Toy.limit is 0; expected a value >= 1"),
        ({"rate": float("nan")}, "Toy.rate is nan"),
    ],
)
def test_wrong_values_are_refused_with_their_range(options, message):
    with pytest.raises(ConfigError) as caught:
        Toy.from_options(options)
    assert message in str(caught.value)


def test_unknown_option_offers_the_near_miss():
    with pytest.raises(UnknownNameError, match="unknown option 'widht'; did you mean 'width'"):
        Toy.from_options({"widht": 3})


def test_construction_checks_too():
    with pytest.raises(ConfigError, match=r"Toy.width is '5'; expected int"):
        Toy(width="5")


def test_description_is_complete_and_json():
    rows = Toy.describe()
    assert [row["name"] for row in rows] == ["width", "rate", "share", "kind", "on", "limit"]
    assert rows[0] == {
        "name": "width", "type": "int", "default": 5, "description": "a width", "ge": 1,
    }  # fmt: skip
    assert rows[3]["choices"] == ("plain", "fancy")
    assert rows[5]["type"] == "int or None"
    json.dumps(rows)
    json.dumps(Toy().as_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "GlueConfig.latent_dim is 0; expected a value >= 1"),
        ({"batch_size": 1}, "GlueConfig.batch_size is 1; expected a value >= 2"),
        ({"dropout": 1}, "GlueConfig.dropout is 1.0; expected a value < 1"),
        ({"val_split": 0}, "GlueConfig.val_split is 0.0; expected a value > 0"),
        ({"lam_align": -0.1}, "GlueConfig.lam_align is -0.1; expected a value >= 0"),
        ({"hidden_depth": -1}, "GlueConfig.hidden_depth is -1; expected a value >= 0"),
        ({"learning_rate": 0}, "GlueConfig.learning_rate is 0.0; expected a value > 0"),
        ({"balance_rule": "sums"}, "did you mean 'sum'"),
        ({"restore": "last"}, "did you mean 'latest'"),
        ({"pretrain": False}, "balance=true needs pretrain=true, which the weights come from; set"),
        ({"n_negatives": 0}, "GlueConfig.n_negatives is 0; expected a value >= 1"),
    ],
)
def test_glue_refuses_values_out_of_range(options, message):
    with pytest.raises(ConfigError) as caught:
        GlueMethod.configure("default", options)
    assert message in str(caught.value)
    assert caught.value.__notes__ == ["while configuring method 'glue', preset 'default'"]


def test_glue_refuses_unknown_options_and_presets():
    with pytest.raises(UnknownNameError, match="did you mean 'latent_dim'"):
        GlueMethod.configure("default", {"latentdim": 10})
    with pytest.raises(UnknownNameError, match="unknown preset of glue 'papr'; did you mean 'pap"):
        GlueMethod.configure("papr")


def test_every_option_of_glue_is_described():
    for row in GlueConfig.describe():
        assert len(row["description"]) > 10, row["name"]
