"""A run on disk: config.json, environment.json, log.txt, metrics.jsonl, last.safetensors, best.safetensors."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from models.training.config import TrainConfig
from models.training.machine import environment
from models.writing import write_atomically, write_text, writing


class RunFolder:
    """The files of one run. Only the first process writes; the others hold the paths."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> "RunFolder":
        """A new run. FileExistsError if the folder holds results of one; a start that failed leaves none."""
        folder = cls(path)
        if folder.last.exists() or folder.metrics_file.exists():
            raise FileExistsError(
                f"{folder.path} already holds a run. Continue it with --resume {folder.path}, or choose another --out."
            )
        with writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(config)
        folder.write_json("environment.json", environment())
        return folder

    def read_config(self) -> TrainConfig:
        """The configuration the run was started with."""
        if not self.config_file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: {self.config_file.name} is missing.")
        try:
            return TrainConfig.from_dict(json.loads(self.config_file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.config_file} is no configuration of a run: {error!r}.") from error

    def write_config(self, config: TrainConfig) -> None:
        self.write_json(self.config_file.name, config.to_dict())

    def write_json(self, name: str, content: Any) -> None:
        write_text(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def keep(self, iteration: int, count: int) -> None:
        """A copy of `last` under its iteration, in checkpoints/; of these the newest `count` stay."""
        kept = self.path / "checkpoints"
        with writing(kept):
            kept.mkdir(exist_ok=True)
        write_atomically(kept / f"{iteration:08d}.safetensors", lambda temporary: shutil.copyfile(self.last, temporary))
        for old in sorted(kept.glob("*.safetensors"))[:-count]:
            old.unlink()

    def append_metrics(self, row: dict[str, Any]) -> None:
        """One epoch as one line of metrics.jsonl."""
        self._write_metrics([*self.read_metrics(), row])

    def read_metrics(self) -> list[dict[str, Any]]:
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def forget_after(self, epoch: int) -> None:
        """Drop metrics of epochs past `epoch`: a crash can leave lines that the last checkpoint does not know."""
        rows = self.read_metrics()
        kept = [row for row in rows if row["epoch"] <= epoch]
        if len(kept) < len(rows):
            self._write_metrics(kept)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        # as a whole: half a line, as a full disk leaves it, would make the run unreadable
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def open_log(self, terminal: bool = True) -> logging.Logger:
        """A logger that writes log.txt (appending) and, if asked to, the terminal."""
        logger = logging.getLogger(f"difnet.run.{self.path.resolve()}")
        close_log(logger)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        with writing(self.path / "log.txt"):
            to_file = logging.FileHandler(self.path / "log.txt")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(to_file)
        if terminal:
            logger.addHandler(logging.StreamHandler(sys.stdout))
        return logger


def close_log(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
