"""An executor whose trials do not train: they write what a run writes, a step at every poll."""

import json
from dataclasses import dataclass, field

from hybrid_flax.jobs.executor import Ended
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.training.writers import JsonlWriter, read_jsonl

__all__ = ["FakeExecutor", "loss_of"]


def loss_of(config: dict, step: int) -> float:
    """The loss of a config after a step: least at learning_rate 0.01 and after many steps."""
    rate = config["optim"]["learning_rate"]
    return abs(rate - 0.01) * 100 + 1.0 / step


@dataclass
class _Job:
    folder: TrialFolder
    config: dict
    step: int
    ended: int | None = None


@dataclass
class FakeExecutor:
    """A trial of seed 13 fails after its third step. steps: all that were trained, by folder name."""

    slots: int = 1
    steps: dict[str, list[int]] = field(default_factory=dict)
    cancelled: int = 0
    most: int = 0
    running: list[_Job] = field(default_factory=list)

    def submit(self, folder: TrialFolder) -> _Job:
        config = json.loads(folder.trial.read_text())["config"]
        rows = read_jsonl(folder.metrics)
        job = _Job(folder, config, rows[-1]["step"] if rows else 0)
        assert not any(other.folder.path == folder.path for other in self.running), "two writers"
        self.running.append(job)
        self.most = max(self.most, len(self.running))
        return job

    def poll(self, job: _Job) -> Ended | None:
        if job.ended is None:
            self._step(job)
        if job.ended is None:
            return None
        self.running.remove(job)
        return Ended(job.ended)

    def cancel(self, job: _Job) -> None:
        self.cancelled += 1
        job.ended = 143

    def close(self) -> None:
        self.running.clear()

    def _step(self, job):
        last = job.config["train"]["steps"]
        loss = loss_of(job.config, min(job.step + 1, last))
        if job.step < last:  # else a worker was killed after the last row of metrics and before the results
            job.step += 1
            self.steps.setdefault(job.folder.path.name, []).append(job.step)
            if job.config["seed"] == 13 and job.step == 3:
                job.folder.output.write_text("noise\nerror: step 3: train/loss is not finite\n")
                job.ended = 1
                return
            with JsonlWriter(job.folder.metrics) as writer:
                writer.write({"step": job.step, "eval/loss": loss, "eval/accuracy": 1 / loss})
        if job.step == last:
            metrics = {"loss": loss, "accuracy": 1 / loss}
            results = {"valid": metrics, "test": metrics}
            job.folder.write_results(results, last, last_step=last, stopped_early=False)
            job.ended = 0
