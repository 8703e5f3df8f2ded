"""What is `ich-ray adapt` worth to a site? Made-up features of a site that is unlike home, and of one that is like it.

A GRU learns on 300 series at home. Of each draw of a site 100 series teach, 30 choose and 400 tell: the log loss, after
the scaling that suits these very series, of studies, and with labels of slices that of slices added to it. Told are the
mean of the difference over draws, and its least and most.

    python benchmarks/adapting.py [--draws 5]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import machine, table
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.refit.adaptation_training import fit_to_labels, site_loss
from ich_ray.training.parts import TrainingBudget
from ich_ray.training.sequence_batches import PlaceFeatures
from ich_ray.training.sequence_loop import train_sequence
from tests.sequences import FEATURES, make_series, without_slice_labels

if TYPE_CHECKING:
    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.training.sequence_set import SequenceSet

CPU = torch.device("cpu")
AT_HOME = SequenceParameters(model="bigru", hidden=16, projection=16, batch_size=16, learning_rate=3e-3)
NOISE, SERIES = 0.5, (100, 30, 400)  # who teach, choose and tell


def network_of(weights: dict[str, torch.Tensor]) -> SequenceNetwork:
    network = build_sequence_network(AT_HOME, FEATURES, 2)
    network.load_state_dict(weights)
    return network


def learnt_at_home() -> SequenceNetwork:
    home = make_series(300, seed=1, noise=NOISE)
    *_, last = train_sequence(AT_HOME, home, None, budget=TrainingBudget(6000, 6000), seed=0)
    return network_of(last.state().part("weights"))


def weaker_and_shifted(site: SequenceSet) -> SequenceSet:
    """The feature that tells blood is weaker, and it and another one lie elsewhere."""
    features = np.array(site.features, np.float32)
    features[:, 0] = features[:, 0] * 0.6 + 0.4
    features[:, 2] += 1
    return replace(site, features=features.astype(np.float16))


def change(network: SequenceNetwork, draw: int, moved: bool, alone: bool) -> float:
    """How much the loss of new patients changes at one draw of a site."""
    site = [make_series(count, seed=100 + 10 * draw + part, noise=NOISE) for part, count in enumerate(SERIES)]
    if moved:
        site = [weaker_and_shifted(part) for part in site]
    if alone:
        site = [without_slice_labels(part) for part in site]
    train, validation, new = site
    # The network of slices says nothing by itself.
    own, of_new = (np.zeros((len(part.targets), 2), np.float32) for part in (validation, new))
    adapted = network_of(fit_to_labels(network, train, validation, own, study_alone=alone, device=CPU).weights)
    places = PlaceFeatures(new.features, new.order, CPU)
    return site_loss(adapted, new, places, of_new) - site_loss(network, new, places, of_new)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--draws", type=int, default=5)
    draws = range(arguments.parse_args().draws)
    torch.set_num_threads(1)
    network = learnt_at_home()
    rows = []
    for moved, features in ((True, "weaker and shifted"), (False, "as at home")):
        for alone, labels in ((True, "studies alone"), (False, "slices")):
            changes = [change(network, draw, moved, alone) for draw in draws]
            told = f"{np.mean(changes):+.3f} ({min(changes):+.3f} to {max(changes):+.3f})"
            rows.append((features, labels, told))
    print(f"log loss of new patients, adapted - as it came; {len(draws)} draws, mean (least to most)")
    print(table(("the site's features", "labels of", "change"), rows))
    print(machine())


if __name__ == "__main__":
    main()
