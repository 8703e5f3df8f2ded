"""Search, train, calibrate and check intracranial-haemorrhage detectors on head-CT slices, with Ray.

Importing this package loads neither Ray nor PyTorch: each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import ich_ray.published  # noqa: F401  (announces what it adds, in whatever process imports anything of this package)

if TYPE_CHECKING:
    from ich_ray.assess.calibration import calibrate
    from ich_ray.assess.evaluate import evaluate, evaluate_site
    from ich_ray.assess.recalibration import recalibrate
    from ich_ray.bundle.bundle import Bundle, load_bundle
    from ich_ray.cluster.doctor import doctor
    from ich_ray.cluster.jobs import Job, jobs, logs, stop, submit
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.data.prepare.run import prepare
    from ich_ray.errors import IchRayError
    from ich_ray.html_report.page import report
    from ich_ray.pipeline import demo, run
    from ich_ray.refit.adapt import adapt
    from ich_ray.refit.confirm import confirm
    from ich_ray.refit.retrain import retrain
    from ich_ray.results import SearchResult, open_search
    from ich_ray.search.audit.search_audit import Audit, audit
    from ich_ray.search.control import control_search
    from ich_ray.search.export import export
    from ich_ray.search.plan.plan_report import SearchPlan, plan_search
    from ich_ray.search.run import run_search
    from ich_ray.trial_records import TrialResult

_HOMES = {
    "Audit": "ich_ray.search.audit.search_audit",
    "Bundle": "ich_ray.bundle.bundle",
    "IchRayError": "ich_ray.errors",
    "Job": "ich_ray.cluster.jobs",
    "SearchPlan": "ich_ray.search.plan.plan_report",
    "PreparedDataset": "ich_ray.data.dataset",
    "SearchResult": "ich_ray.results",
    "TrialResult": "ich_ray.trial_records",
    "adapt": "ich_ray.refit.adapt",
    "audit": "ich_ray.search.audit.search_audit",
    "calibrate": "ich_ray.assess.calibration",
    "confirm": "ich_ray.refit.confirm",
    "control_search": "ich_ray.search.control",
    "demo": "ich_ray.pipeline",
    "doctor": "ich_ray.cluster.doctor",
    "evaluate": "ich_ray.assess.evaluate",
    "evaluate_site": "ich_ray.assess.evaluate",
    "export": "ich_ray.search.export",
    "jobs": "ich_ray.cluster.jobs",
    "load_bundle": "ich_ray.bundle.bundle",
    "logs": "ich_ray.cluster.jobs",
    "open_search": "ich_ray.results",
    "plan_search": "ich_ray.search.plan.plan_report",
    "prepare": "ich_ray.data.prepare.run",
    "recalibrate": "ich_ray.assess.recalibration",
    "report": "ich_ray.html_report.page",
    "retrain": "ich_ray.refit.retrain",
    "run": "ich_ray.pipeline",
    "run_search": "ich_ray.search.run",
    "stop": "ich_ray.cluster.jobs",
    "submit": "ich_ray.cluster.jobs",
}

__all__ = [
    "Audit",
    "Bundle",
    "IchRayError",
    "Job",
    "PreparedDataset",
    "SearchPlan",
    "SearchResult",
    "TrialResult",
    "adapt",
    "audit",
    "calibrate",
    "confirm",
    "control_search",
    "demo",
    "doctor",
    "evaluate",
    "evaluate_site",
    "export",
    "jobs",
    "load_bundle",
    "logs",
    "open_search",
    "plan_search",
    "prepare",
    "recalibrate",
    "report",
    "retrain",
    "run",
    "run_search",
    "stop",
    "submit",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ich_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
