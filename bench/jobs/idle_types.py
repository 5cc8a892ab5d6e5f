"""The probes among 50 job types that have nothing to do, as in an application that has grown."""

from bench.jobs.probe import LimitedProbeJob, ProbeJob
from cluster import Job

__all__ = ["IDLE_CLASSES", "LimitedProbeJob", "ProbeJob"]


async def perform(self: Job) -> None: ...


def _idle_class(number: int) -> type[Job]:
    values = {"__module__": __name__, "table": f"bench_idle{number}_jobs", "perform": perform}
    return type(f"Idle{number}Job", (Job,), values)


IDLE_CLASSES = [_idle_class(number) for number in range(1, 51)]
globals().update({job_class.__name__: job_class for job_class in IDLE_CLASSES})  # where a node finds them
