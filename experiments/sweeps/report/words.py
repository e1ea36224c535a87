"""What the report says about its own numbers; the same in the page and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.sweeps.report.cells import Sweep

P = (
    "p: of the paired t-test by seed against the first, two-sided, each for itself: among many "
    "some are small by chance, and that the first was picked is not counted."
)
LEADERBOARD = (
    "Worst case: the lowest, over attacks and scenarios, of the mean over seeds of the final "
    "model's accuracy on the test split, by which nothing was chosen. To do nothing is "
    "an attack too.",
    "±: half of the 95 % confidence interval of that mean, by Student's t over the seeds. It "
    "covers what the seeds change, not that the lowest of several means was looked for.",
    "Behind the first: the mean difference by seed in points, each defence in its own worst case, "
    "with its own interval.",
    "Average: over attacks and scenarios.",
    P,
)
HEAT = (
    "Mean test accuracy over seeds, in percent, from dark (0) to light (100). An asterisk: "
    "trainings are missing."
)
SCENARIOS = "The worst attack of each scenario: mean test accuracy over seeds, in percent."
PARTITIONS = (
    "The worst attack for every declared number of Byzantine workers f and every division of the "
    "data: mean test accuracy over seeds, in percent."
)
SO_FAR = (
    "Of the trainings that are done, in percent: the mean over seeds, of the best setting where "
    "some are tuned; the lowest over scenarios. Nothing has been tested."
)
CURVES = (
    "Accuracy on the validation split, of the chosen settings: the mean over seeds, and a band "
    "from the least to the largest of them. Test accuracies have no curves: the test split is used "
    "once, at the end."
)
SELECTION = (
    "The tuned parameters are those with the best worst case over attacks of the mean over seeds "
    "of the final validation accuracy, in percent here; the test split was not looked at. A "
    "setting in which a training failed cannot be chosen; that training counts as 0 here."
)
TRADEOFF = (
    "Time of the server's aggregation in a round, mean over the trainings, against the worst case. "
    "On the Pareto front is what no other defence beats in both. Trainings that share a machine's "
    "cores slow each other down: compare times, do not quote them."
)
PUBLISHED = (
    "Ours is the mean over seeds on the test split, with the 95 % interval; without an attack in "
    "the source's row it is the worst case over attacks. Data, scale and the way parameters were "
    "chosen may differ: see the notes above."
)
COMMANDS = (
    "The configuration of every training and the command that trains it again alone are in "
    "report.html and results.parquet."
)


def versions(found: Sequence[str]) -> str:
    """Where a sweep went on after an update."""
    return (
        f"The cells were not all trained by the same version of robust-agg: {', '.join(found)}. "
        "Differences between them may be the versions'."
    )


def breakdown(sweep: Sweep) -> str:
    """What the breakdown point is here."""
    limit = sweep.section("breakdown").get("accuracy")
    if limit is None:
        limit = next((row.get("accuracy") for row in sweep.breakdown), None)
    below = "a stated accuracy" if limit is None else f"{100 * float(limit):g} %"
    return (
        f"The smallest f at which the mean over seeds of the final validation accuracy is below "
        f"{below}, found by bisection for every attack: what holds at one f is taken to hold at "
        f"all smaller ones. f = 0 is not tried: who falls at f = 1 may not have come so far "
        f"without attackers either."
    )


def without(places: Sequence[str]) -> list[str]:
    """That the first sentence of a report is not about all that was run."""
    if not places:
        return []
    few = "; ".join(places) if len(places) <= 3 else f"{len(places)} scenarios or attacks in them"
    return [f"Not counted, as not every defence has numbers there: {few}."]


def left_out(places: Sequence[str]) -> str:
    """Why scenarios, or attacks in them, are not in the leaderboard."""
    return (
        f"Not in leaderboard and heat maps, as not every defence met every attack there or no "
        f"defence has a test accuracy: {'; '.join(places)}."
    )
