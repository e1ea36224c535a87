"""robust-agg: Byzantine-robust aggregation and online median estimators for distributed training.

An aggregator is a callable from rows ``(n, d)``, one per worker, to one row ``(d,)`` that up to f
bad rows cannot drag away::

    from robust_agg import NearestNeighborMixing, TrimmedMean, chain

    rule = chain(NearestNeighborMixing(f=2), TrimmedMean(f=2))
    update = rule(rows)
"""

from robust_agg.admission import Rejection
from robust_agg.aggregator import Aggregator, Explanation, Invariance
from robust_agg.bulyan import Bulyan
from robust_agg.chain import Chain, chain
from robust_agg.coordinatewise.beta_trimmed_mean import BetaTrimmedMean
from robust_agg.coordinatewise.mean_around_median import MeanAroundMedian
from robust_agg.coordinatewise.median import CoordinateWiseMedian
from robust_agg.coordinatewise.phocas import Phocas
from robust_agg.coordinatewise.sign_majority import SignMajority
from robust_agg.coordinatewise.trimmed_mean import TrimmedMean
from robust_agg.errors import ConstraintError, SearchLimitError, TooManyRejectedError
from robust_agg.filters.clipped_clustering import ClippedClustering
from robust_agg.filters.divide_and_conquer import DivideAndConquer
from robust_agg.filters.fl_trust import FLTrust
from robust_agg.filters.flame import FLAME
from robust_agg.filters.sign_guard import SignGuard
from robust_agg.ledger import Ledger, Record
from robust_agg.messages import Update
from robust_agg.mixings.adaptive_clip import AdaptiveClip
from robust_agg.mixings.bucketing import Bucketing
from robust_agg.mixings.clip import Clip
from robust_agg.mixings.krum_selection import KrumSelection
from robust_agg.mixings.mixing import Mixing
from robust_agg.mixings.nearest_neighbor import NearestNeighborMixing
from robust_agg.mixings.resample import Resample
from robust_agg.online.block import BlockL2
from robust_agg.online.coordinate import L1
from robust_agg.online.divergence import Divergence
from robust_agg.online.estimator import Estimator, OnlineMedian
from robust_agg.online.named import AdaptiveMomentum, CClip, Momentum, SignedIncrement, VClip
from robust_agg.online.radial import L2, Huber, Squared
from robust_agg.online.tau import Adaptive
from robust_agg.server import Server
from robust_agg.types import State
from robust_agg.weightings.caf import CAF
from robust_agg.weightings.centered_clipping import CenteredClipping
from robust_agg.weightings.cge import CGE
from robust_agg.weightings.geometric_median import GeometricMedian
from robust_agg.weightings.krum import Krum, MultiKrum
from robust_agg.weightings.mean import Mean
from robust_agg.weightings.medoid_median import MedoidMedian
from robust_agg.weightings.minimum_diameter_averaging import MinimumDiameterAveraging
from robust_agg.weightings.monna import MoNNA
from robust_agg.weightings.smea import SMEA
from robust_agg.weightings.smoothed_geometric_median import SmoothedGeometricMedian

__all__ = [
    "CAF",
    "CGE",
    "FLAME",
    "L1",
    "L2",
    "SMEA",
    "Adaptive",
    "AdaptiveClip",
    "AdaptiveMomentum",
    "Aggregator",
    "BetaTrimmedMean",
    "BlockL2",
    "Bucketing",
    "Bulyan",
    "CClip",
    "CenteredClipping",
    "Chain",
    "Clip",
    "ClippedClustering",
    "ConstraintError",
    "CoordinateWiseMedian",
    "Divergence",
    "DivideAndConquer",
    "Estimator",
    "Explanation",
    "FLTrust",
    "GeometricMedian",
    "Huber",
    "Invariance",
    "Krum",
    "KrumSelection",
    "Ledger",
    "Mean",
    "MeanAroundMedian",
    "MedoidMedian",
    "MinimumDiameterAveraging",
    "Mixing",
    "MoNNA",
    "Momentum",
    "MultiKrum",
    "NearestNeighborMixing",
    "OnlineMedian",
    "Phocas",
    "Record",
    "Rejection",
    "Resample",
    "SearchLimitError",
    "Server",
    "SignGuard",
    "SignMajority",
    "SignedIncrement",
    "SmoothedGeometricMedian",
    "Squared",
    "State",
    "TooManyRejectedError",
    "TrimmedMean",
    "Update",
    "VClip",
    "chain",
]

__version__ = "0.1.0"
