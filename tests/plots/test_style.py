from __future__ import annotations

import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scbraid.errors import DataError
from scbraid.plots.style import (
    QUALITATIVE,
    Drawing,
    Key,
    Legend,
    Sheet,
    category_colours,
    seed_offsets,
    shorten,
    shorten_all,
    style,
    text_width,
    wrap,
)

DRAW = """
import sys
import pandas as pd
from scbraid import plots
names = ("method", "seed", "metric")
rows = [dict(zip(names, (m, s, k))) for m in "abc" for s in (0, 1) for k in ("bio", "mixing")]
table = pd.DataFrame(rows).assign(dataset="d", condition="unpaired", preset="", definition="v")
table["value"], table["status"] = 0.1 * table["seed"] + 0.2, "ok"
plots.bio_vs_mixing(table, sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules, "pyplot was loaded"
"""


def test_same_bytes_in_processes_with_other_hash_seeds(tmp_path):
    for name, seed in (("a", "1"), ("b", "2")):
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", DRAW, tmp_path / name], env=env, check=True)
    for end in ("pdf", "png", "tsv"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()


def test_importing_the_package_loads_no_matplotlib():
    code = "import sys, scbraid.plots as p; p.figure_names(); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_settings_are_left_as_they_were():
    before = dict(mpl.rcParams)
    with style():
        assert mpl.rcParams["pdf.fonttype"] == 42
        assert mpl.rcParams["text.parse_math"] is False
    assert dict(mpl.rcParams) == before


def test_a_dot_in_the_name_stays(tmp_path):
    with style():
        files = Drawing(Sheet(20, 10).figure, pd.DataFrame({"panel": ["a"]})).save(
            tmp_path / "history.glue"
        )
    assert files.pdf.name == "history.glue.pdf"
    assert files.tsv.read_text() == "panel\na\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    target = tmp_path / "file"
    target.write_text("")
    with pytest.raises((DataError, OSError)):
        Drawing(Sheet(20, 10).figure, pd.DataFrame()).save(target / "figure")


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(tmp_path):
    with style():
        sheet = Sheet(60, 10)
        sheet.text(1, 5, "cost $a_b$ ^ \\frac {x}")
        sheet.figure.canvas.draw()
        Drawing(sheet.figure, pd.DataFrame()).save(tmp_path / "x")


def test_measured_width_is_the_drawn_width():
    with style():
        sheet = Sheet(180, 10)
        sheet.text(0, 5, "Some words of ordinary length, 0.123 ±0.456")
        sheet.figure.set_dpi(300)
        sheet.figure.canvas.draw()
        drawn = sheet.canvas.texts[0].get_window_extent().width / 300 * 25.4
    measured = text_width("Some words of ordinary length, 0.123 ±0.456")
    assert drawn <= measured <= 1.03 * drawn


def test_shorten_keeps_both_ends_and_fits():
    name = "glue+latent_dim=20,learning_rate=0.001"
    short = shorten(name, 25.0)
    assert text_width(short) <= 25.0
    assert short.startswith("glue")
    assert short.endswith("001")
    assert "…" in short
    assert shorten("GLUE", 25.0) == "GLUE"
    assert shorten(name, 0.1) == "…"


def test_texts_that_are_shortened_together_stay_different():
    names = [
        "CoVEL:edge_damage=0.4,max_epochs=2",
        "CoVEL:edge_damage=1,max_epochs=2",
        "CoVEL:edge_damage=0.8,max_epochs=2",
        "GLUE",
        "GLUE",
    ]
    width = text_width("CoVEL:edge_damage=0.4…") + 0.5
    assert len({shorten(name, 25.0) for name in names[:3]}) == 1
    for room in (width, 25.0):
        short = shorten_all(names, room)
        assert len(set(short)) == 4
        assert short[3:] == ["GLUE", "GLUE"]
        assert all(text_width(label) <= room for label in short)
        assert all(
            value in label for value, label in zip(("0.4", "1", "0.8"), short[:3], strict=True)
        )
    # Where there is no room, there is none.
    assert shorten_all(names[:2], 0.1) == ["…", "…"]


def test_wrap_fits_and_keeps_no_break_spaces():
    text = "one two three four †\u00a0five six seven"
    lines = wrap(text, 18.0)
    assert len(lines) > 2
    assert all(text_width(line) <= 18.0 for line in lines)
    assert " ".join(lines) == text
    assert any("†\u00a0five" in line for line in lines)


def test_legend_takes_the_height_it_says_and_the_width_it_is_given():
    keys = [Key(f"a name of length {i}", "#000000") for i in range(25)]
    wide, narrow = Legend("Title", keys, 170), Legend("Title", keys, 40)
    assert wide.height < narrow.height
    assert narrow.height == pytest.approx(25 * 3.1 + 3.9)
    with style():
        sheet = Sheet(180, wide.height + 4)
        wide.draw(sheet, 2, 2)
        positions = np.array([text.get_position() for text in sheet.canvas.texts])
    assert len(positions) == 26
    assert positions[:, 1].max() <= wide.height + 2


def test_palette_is_distinct_for_red_green_deficient_eyes_too():
    assert len(set(QUALITATIVE)) == len(QUALITATIVE) == 48
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in QUALITATIVE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Machado, Oliveira and Fernandes (2009), severity 1; Ottosson's OKLab.
    deuteranope = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    oklab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    for matrix, least in ((np.eye(3), {7: 0.15, 20: 0.08, 48: 0.05}),
                          (np.array(deuteranope), {7: 0.07, 20: 0.065, 48: 0.04})):  # fmt: skip
        seen = np.clip(linear @ matrix.T, 0, 1)
        lab = np.cbrt(seen @ np.array(cones).T) @ np.array(oklab).T
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 9 * np.eye(48)
        for n, smallest in least.items():
            assert distance[:n, :n].min() > smallest


def test_commonest_categories_get_the_safest_colours():
    colours = category_colours(["rare", "common", "middle"], {"rare": 1, "common": 9, "middle": 5})
    assert [colours[name] for name in ("common", "middle", "rare")] == list(QUALITATIVE[:3])


def test_seed_offsets_are_even_and_centred():
    assert seed_offsets(1, 0.2).tolist() == [0]
    np.testing.assert_allclose(seed_offsets(3, 0.2), [-0.2, 0, 0.2])
