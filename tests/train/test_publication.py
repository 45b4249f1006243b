"""The page of results: what stands on it, what it names as missing, and that the repository's own is up to date."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path

import om2p_recipes
import pytest

from om2p_data.errors import UserError
from om2p_train import recorded_run, records, results
from om2p_train.config import Scale
from om2p_train.reporting import publication

from .written_runs import write_run

ROOT = Path(__file__).parents[2]
SHORT = ["run.updates=200", "run.evaluate_every=100", "run.evaluation_episodes=2"]
TABLE = f"""
title = "A tiny table"
source = "A paper"

[[part]]
name = "returns"
title = "final policies"
show = "table"
tasks = ["cooperative-navigation", "world"]
tiers = ["medium", "expert"]
algorithms = ["bc", "om2p"]
settings = {SHORT}

[published.cooperative-navigation]
medium = {{ bc = [255.0, 5.6], om2p = [349.0] }}
expert = {{ bc = [505.0, 5.6], om2p = [509.0] }}
"""
TUNING = f"""
title = "What was tuned"
source = "our own budget"

[[part]]
name = "bc"
title = "steps of bc"
show = "choice"
tasks = ["cn"]
tiers = ["medium", "expert"]
algorithms = ["bc"]
seeds = [7, 8, 9]
settings = {SHORT}

[part.variants]
usual = []
small = ["optimizer.learning_rate=0.0001"]
large = ["optimizer.learning_rate=0.01"]

[[part]]
name = "om2p"
title = "eta of om2p"
show = "choice"
tasks = ["cn"]
tiers = ["medium"]
algorithms = ["om2p"]
variants = {{ weak = ["options.eta=0.1"], strong = ["options.eta=1.0"] }}
"""
PROTOCOLS = """
[cpu]
scale = "cpu"
device = "cpu"
seeds = [0, 1, 2]
transitions = 500

[paper]
scale = "paper"
device = "cpu"
seeds = [0, 1, 2]
transitions = 500
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which two experiments can be reproduced."""
    bundle, own = tmp_path / "bundle", Path(om2p_recipes.__path__[0])
    (bundle / "paper").mkdir(parents=True)
    (bundle / "paper" / "tiny.toml").write_text(TABLE)
    (bundle / "paper" / "tuning.toml").write_text(TUNING)
    (bundle / "protocols.toml").write_text(PROTOCOLS)
    (bundle / "train").symlink_to(own / "train")
    monkeypatch.setattr("om2p_data.recipe._bundle", lambda: bundle)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(folder, scale=Scale.CPU, **changes):
    """The runs of Cooperative Navigation, and BC's on medium World."""
    cells = [
        ("bc", "cn", "medium", (250, 260, 270)),
        ("om2p", "cn", "medium", (340, 350, 360)),
        ("bc", "cn", "expert", (480, 500, 520)),
        ("om2p", "cn", "expert", (490, 510, 530)),
        ("bc", "world", "medium", (270, 280, 290)),  # its mean is above the data, and its interval holds the data
    ]
    for algo, task, tier, final in cells:
        words = {"task": task, "tier": tier, "settings": SHORT, "scale": scale} | changes
        write_run(folder / "runs" / f"{task}-{tier}-{algo}", algo, ((100, 100, 100), final), **words)


def write_tuning(folder, **changes):
    rates = {"usual": [], "small": ["optimizer.learning_rate=0.0001"], "large": ["optimizer.learning_rate=0.01"]}
    for tier, finals in (
        ("medium", {"usual": 250, "small": 300, "large": 280}),
        ("expert", {"usual": 400, "large": 410}),
    ):
        for name, final in finals.items():
            run = ((100, 100, 100), (final - 10, final, final + 10))
            write_run(
                folder / "runs" / f"{tier}-{name}", "bc", run, tier=tier, settings=[*SHORT, *rates[name]], **changes
            )


def record(folder):
    """Its runs as records alone."""
    found = [recorded_run.read(run) for run in sorted((folder / "runs").iterdir())]
    records.write(found, folder / "runs.jsonl")
    shutil.rmtree(folder / "runs")


def published(*places, out="RESULTS.md"):
    publication.write([Path(place) for place in places], Path(out))
    return Path(out).read_text(encoding="utf-8")


def table_below(page, words):
    """Rows of the first table below some words, by their first cell."""
    lines = page[page.index(words) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {row[0]: row[1:] for row in rows if not row[0].startswith(":-")}


def test_a_page_says_what_was_found_and_what_the_runs_were(here):
    write_table(here / "reproduce" / "tiny-cpu")
    record(here / "reproduce" / "tiny-cpu")
    page = published("reproduce")
    assert "```bash\nom2p-train publish reproduce\n```" in page
    status = table_below(page, "What has been run")
    assert status["[tiny](#tiny-at-scale-cpu)"] == ["cpu", "5 of 8", "3", "a machine", "abcdef", "0.1.0"]
    assert "Without any run: `tiny` at paper; `tuning` at cpu, paper." in page
    assert "## tiny at scale cpu\n" in page
    returns = table_below(page, "#### Final returns")
    assert returns["data set"] == ["data", "bc", "bc*", "om2p", "om2p*"]
    assert returns["cooperative-navigation medium"] == [
        "273.0", "260.0 ± 10.0", "255.0 ± 5.6", "**350.0 ± 10.0**", "349.0",
    ]  # fmt: skip
    assert "world expert" not in returns
    assert table_below(page, "#### Data sets on which") == {  # what is published is of another scale
        "method": ["above the data", "apart from it"],
        "bc": ["2 of 3", "1 of 3"],
        "om2p": ["2 of 2", "2 of 2"],
    }
    assert "- missing: 3 of 8 runs, om2p on world (medium); all on world (expert)\n" in page
    made = "*Runs: scale cpu; 3 seeds; 2 evaluation episodes; 200 updates; hidden layers 128 x 128; commit abcdef.*"
    assert page.count(made) == page.count("\n#### ") - 1 == 4
    settings = table_below(page, "#### Options that differ between data sets")
    of_expert = dict(zip(settings["data set"], settings["cooperative-navigation expert"], strict=True))
    assert (of_expert["om2p: eta"], of_expert["om2p: noise_scale"]) == ("0.01", "0.0")
    assert "earlier form" not in page
    assert str(here) not in page


def test_a_page_says_where_teams_were_told_apart(here):
    write_table(here / "reproduce" / "tiny-cpu")
    told = {"shares": [0.9, 0.1], "returns": [264.0, 549.0], "standard_errors": [1.0, None], "plays": 1}
    file = here / "reproduce" / "tiny-cpu" / "runs" / "cn-expert-om2p" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"behavior_teams": told}))
    record(here / "reproduce" / "tiny-cpu")
    words = "data as one team's (om2p on cooperative-navigation expert: told apart as 2 teams'); commit abcdef.*"
    assert words in published("reproduce")


def test_what_some_runs_have_of_their_own_is_said_of_those_who_have_it(tmp_path):
    """World is judged by fewer episodes, BC by more wherever that is not World, and OM2P in one place."""
    places = [("cn", "medium"), ("cn", "expert"), ("pp", "medium"), ("world", "medium")]
    counts = {"bc": "7773", "om2p": "5953", "vgm2p": "5553"}
    for number, (algo, place) in enumerate(product(counts, places)):
        write_run(tmp_path / f"{number:02}", algo, task=place[0], tier=place[1])
    found = results.gather([tmp_path])
    assert list(found.labels) == [algo for algo in counts for _ in places]
    assert publication._with_others(list("".join(counts.values())), found) == (
        "5 (world medium: 3; bc: 7; om2p on cooperative-navigation expert: 9)"
    )


def test_at_the_papers_scale_ours_are_counted_against_the_published(here):
    write_table(here / "reproduce" / "tiny-paper", Scale.PAPER)
    above = table_below(published("reproduce"), "#### Data sets on which")
    assert above["method"][2:] == ["above the published", "apart from that"]
    assert above["bc"][2:] == ["1 of 2", "0 of 2"]  # 260 ± 10 above 255, 500 below 505
    assert above["om2p"][2:] == ["2 of 2", "0 of 2"]


def test_the_same_runs_give_the_same_page_from_folders_and_from_records(here):
    write_table(here / "reproduce" / "tiny-cpu")
    first = published("reproduce")
    pictures = {path.name: path.read_bytes() for path in Path("RESULTS").iterdir()}
    named = re.findall(r"!\[.*?\]\(RESULTS/(.*?)\)", first)
    assert sorted(pictures) == sorted(named) == ["tiny-cpu-returns-improvement.png"]
    record(here / "reproduce" / "tiny-cpu")
    shutil.rmtree("RESULTS")
    assert published(here / "reproduce" / "tiny-cpu") == first.replace(
        "publish reproduce", "publish reproduce/tiny-cpu"
    ).replace("in `reproduce`", "in `reproduce/tiny-cpu`")
    assert {path.name: path.read_bytes() for path in Path("RESULTS").iterdir()} == pictures
    shutil.move("reproduce", "elsewhere")
    moved = published("elsewhere", out="pages/all of it.md")
    assert "om2p-train publish ../elsewhere --out 'all of it.md'" in moved
    assert "(all%20of%20it/tiny-cpu-returns-improvement.png)" in moved
    assert Path("pages", "all of it", "tiny-cpu-returns-improvement.png").is_file()


def test_a_choice_is_the_highest_mean(here):
    write_tuning(here / "reproduce" / "tuning-cpu")
    page = published("reproduce")
    choice = table_below(page, "#### Variants of bc")
    assert choice["data set"] == ["data", "as it is", "learning_rate=0.0001", "learning_rate=0.01"]
    medium, expert = (choice[f"cooperative-navigation {tier}"] for tier in ("medium", "expert"))
    assert medium == ["273.0", "250.0 ± 10.0", "**300.0 ± 10.0**", "280.0 ± 10.0"]
    assert expert == ["273.0", "400.0 ± 10.0", "", "410.0 ± 10.0"]  # no choice before all have run
    assert "- missing: 1 of 6 runs, bc, learning_rate=0.0001 on cooperative-navigation (expert)\n" in page
    assert "Eta of om2p: all 2 runs are missing." in page
    assert "(RESULTS/tuning-cpu-bc.png)" in page
    assert Path("RESULTS/tuning-cpu-bc.png").read_bytes().startswith(b"\x89PNG")


def test_of_several_runs_of_a_cell_one_is_shown_and_the_page_says_so(here):
    cpu = here / "reproduce" / "tiny-cpu" / "runs"
    write_run(cpu / "few", "bc", ((1, 2), (600, 600)), settings=SHORT, started="2026-05-01T00:00:00+00:00")
    write_run(cpu / "old", "bc", ((1, 2, 3), (700, 700, 700)), settings=SHORT, started="2026-03-01T00:00:00+00:00")
    write_run(cpu / "new", "bc", ((1, 2, 3), (249, 250, 251)), settings=SHORT, started="2026-04-01T00:00:00+00:00")
    write_run(cpu / "long", "bc", settings=["run.updates=9"])
    write_run(cpu / "broken", "om2p", settings=SHORT, finished=False)
    page = published("reproduce")
    assert table_below(page, "#### Final returns")["cooperative-navigation medium"][1] == "**250.0 ± 1.0**"
    assert (
        "- bc on om2p/cooperative-navigation/medium-v0 was run 3 times: the run of seeds 0, 1, 2, started "
        "2026-04-01T00:00:00+00:00, is shown\n"
    ) in page
    assert page.endswith("- recorded, and no part of the experiment as it is today: long\n")


def test_columns_stand_as_the_experiment_has_them_whatever_has_run(here):
    cpu = here / "reproduce" / "tiny-cpu" / "runs"
    write_run(cpu / "first", "om2p", settings=SHORT)
    write_run(cpu / "second", "bc", settings=SHORT, tier="expert")
    header = table_below(published("reproduce"), "#### Final returns")["data set"]
    assert [name for name in header if "*" not in name] == ["data", "bc", "om2p"]


def test_seeds_that_were_trained_later_count_in_their_cell(here):
    cpu = here / "reproduce" / "tiny-cpu" / "runs"
    write_run(cpu / "early", "bc", ((1, 2, 3), (249, 250, 251)), settings=SHORT)
    write_run(cpu / "late", "bc", ((1, 2), (252, 253)), settings=SHORT, first_seed=3, commit="123456")
    page = published("reproduce")
    assert table_below(page, "#### Final returns")["cooperative-navigation medium"][1] == "**251.0 ± 1.6**"
    assert "*Runs: scale cpu; 5 seeds; " in page
    assert "; commits abcdef (1 run), 123456 (1 run).*" in page
    assert "was run 2 times" not in page


def test_runs_of_an_earlier_recipe_are_named_with_what_has_changed(here):
    write_table(here / "reproduce" / "tiny-cpu")
    replaced = here / "reproduce" / "tiny-cpu" / "runs" / "cn-medium-om2p"
    now = recorded_run.read(replaced).recipe
    shutil.rmtree(replaced)
    before = now | {"options": now["options"] | {"eta": 0.123}}
    write_run(replaced, "om2p", settings=SHORT, recipe=before, commit=None)
    page = published("reproduce")
    assert "- 1 of 5 runs were made with an earlier form of their recipe: om2p (options.eta)\n" in page
    assert "; commits abcdef (4 runs), unknown (1 run).*" in page


def test_what_cannot_be_published_is_one_line(here):
    write_table(here / "reproduce" / "tiny-cpu")
    (here / "empty").mkdir()
    shutil.copytree("reproduce/tiny-cpu", "strange/tiny-night")
    for places, out, message in (
        (["nowhere"], "RESULTS.md", "^nowhere does not exist$"),
        (["empty"], "RESULTS.md", r"^empty holds no <experiment>-<scale>/runs\.jsonl: `om2p-train reproduce` writes"),
        (["strange"], "RESULTS.md", r"^strange/tiny-night: unknown experiment and scale 'tiny-night': did you mean"),
        (["reproduce"], "RESULTS", r"^the page is Markdown: choose a name that ends in \.md instead of RESULTS$"),
        (["reproduce"], "reproduce/tiny-cpu/runs/cn-medium-bc/run.json/a.md", "^cannot write .*: Not a directory$"),
    ):
        with pytest.raises(UserError, match=message):
            published(*places, out=out)
    assert not Path("RESULTS.md").exists()


def test_the_repositorys_page_is_what_its_records_say(tmp_path, monkeypatch):
    place = Path("benchmarks", "results", "reproduce")
    shutil.copytree(ROOT / place, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    drawn = {}
    monkeypatch.setattr(publication, "save_all", lambda figures, _: drawn.update(figures) or [])
    page = published(place)
    assert page == (ROOT / "RESULTS.md").read_text(encoding="utf-8"), f"om2p-train publish {place} brings it up to date"
    assert {f"{name}.png" for name in drawn} == {path.name for path in (ROOT / "RESULTS").iterdir()}
