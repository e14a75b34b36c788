from __future__ import annotations

import pytest

from scbraid.errors import ConfigError, ScbraidError, UnknownNameError
from scbraid.registry import Registry, near_miss


@pytest.fixture
def registry() -> Registry[int]:
    registry: Registry[int] = Registry("method")
    for number, name in enumerate(("glue", "random", "cca")):
        registry.register(name, number)
    return registry


def test_registry_keeps_order_and_answers_like_a_mapping(registry):
    assert registry.names() == list(registry) == ["glue", "random", "cca"]
    assert registry["random"] == 1
    assert "cca" in registry
    assert "pca" not in registry
    assert len(registry) == 3


def test_unknown_names_offer_the_near_miss(registry):
    with pytest.raises(UnknownNameError) as caught:
        registry["glu"]
    assert str(caught.value) == (
        "unknown method 'glu'; did you mean 'glue'? Known: cca, glue, random"
    )
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ScbraidError)


def test_far_names_get_the_list_alone(registry):
    with pytest.raises(UnknownNameError) as caught:
        registry["xyzzy"]
    assert str(caught.value) == "unknown method 'xyzzy'. Known: cca, glue, random"


def test_an_empty_registry_says_so():
    assert near_miss("a", [], "metric") == "unknown metric 'a'. Known: (none)"


def test_duplicates_are_refused_and_change_nothing(registry):
    with pytest.raises(ConfigError, match="method 'glue' is registered twice"):
        registry.register("glue", 9)
    assert registry["glue"] == 0


def test_register_returns_the_entry(registry):
    assert registry.register("new", 7) == 7
