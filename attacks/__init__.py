"""Attacks: a threat model that says who knows what, and one attack a file."""

from __future__ import annotations

from attacks.a_little_is_enough import ALittleIsEnough, z_max
from attacks.adversary import Adversary, check_some_round
from attacks.anti_clip import AntiClip
from attacks.attack import Attack, DataAttack
from attacks.backdoor import Backdoor
from attacks.bit_flip import BitFlip
from attacks.drift import Drift
from attacks.fang_attack import FangAttack
from attacks.faults import (
    Crash,
    DropCoordinates,
    Duplicate,
    Fault,
    FaultyWorkers,
    Stale,
    Straggle,
)
from attacks.feature_noise import FeatureNoise
from attacks.gaussian_noise import GaussianNoise
from attacks.identities import Identities, byzantine_ids
from attacks.inner_product_manipulation import InnerProductManipulation
from attacks.label_flip import LabelFlip
from attacks.mimic import Mimic
from attacks.min_max import MinMax
from attacks.min_sum import MinSum
from attacks.non_finite import NonFinite
from attacks.optimal_alie import OptimalALIE
from attacks.optimal_ipm import OptimalIPM
from attacks.replay import Replay
from attacks.rop import ROP
from attacks.scale import Scale
from attacks.sign_flip import SignFlip
from attacks.threat import Defence, Knowledge, KnowledgeError, Oracle, UnfitRoundError, View
from attacks.zero import Zero

__all__ = [
    "ROP",
    "ALittleIsEnough",
    "Adversary",
    "AntiClip",
    "Attack",
    "Backdoor",
    "BitFlip",
    "Crash",
    "DataAttack",
    "Defence",
    "Drift",
    "DropCoordinates",
    "Duplicate",
    "FangAttack",
    "Fault",
    "FaultyWorkers",
    "FeatureNoise",
    "GaussianNoise",
    "Identities",
    "InnerProductManipulation",
    "Knowledge",
    "KnowledgeError",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "NonFinite",
    "OptimalALIE",
    "OptimalIPM",
    "Oracle",
    "Replay",
    "Scale",
    "SignFlip",
    "Stale",
    "Straggle",
    "UnfitRoundError",
    "View",
    "Zero",
    "byzantine_ids",
    "check_some_round",
    "z_max",
]
