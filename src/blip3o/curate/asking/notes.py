"""Notes of batches in flight: what a process needs to go on with the batch of a killed one.

    requests/batches/NAME.rows.json    the requests
    requests/batches/NAME.json         the input file and the batch, as the server names them

Without the second note the server has no batch of these requests. If it names a file but no batch,
the server must be asked whether it has made one of that file.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.curate.asking.journal import Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A request of a batch.

    Args:
        asked: its name in the journal.
        paid: the money that is paid in advance.
    """

    asked: Asked
    paid: float


class Notes:
    """The notes of all batches; one process at a time writes those of a batch.

    Args:
        folder: the folder; created with the first note.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_rows(self, name: str, rows: Mapping[str, Row]) -> None:
        """Notes the requests of a batch, before its file is uploaded.

        Args:
            name: name of the batch in the journal.
            rows: the requests by their keys.
        """
        self._folder.mkdir(exist_ok=True)
        content = [dataclasses.asdict(row) for row in rows.values()]
        write_atomic(self._file(name, ".rows.json"), json.dumps(content) + "\n")

    def write(self, name: str, file: str, batch: str = "") -> None:
        """Notes what the server has of a batch.

        Args:
            name: name of the batch in the journal.
            file: name of its input file, noted before the batch is created.
            batch: name of the batch, noted as soon as the server has told it.
        """
        write_atomic(self._file(name, ".json"), json.dumps({"file": file, "batch": batch}) + "\n")

    def read(self, name: str) -> tuple[str, str, dict[str, Row]]:
        """Returns the input file, the name, and the requests of a batch; empty if not noted.

        Args:
            name: name of the batch in the journal.

        Raises:
            UsageError: if the files cannot be read.
        """
        try:
            rows = self._json(self._file(name, ".rows.json"), [])
            state = self._json(self._file(name, ".json"), {"file": "", "batch": ""})
            found = [Row(asked=Asked(**row["asked"]), paid=float(row["paid"])) for row in rows]
            return state["file"], state["batch"], {row.asked.key: row for row in found}
        except OSError as error:
            raise UsageError(f"cannot read {self._folder}: {reason_of(error)}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f"the files of {name} in {self._folder} are damaged") from error

    def remove(self, name: str) -> None:
        """Removes the notes of a batch that is over.

        Args:
            name: name of the batch in the journal.
        """
        for end in (".rows.json", ".json"):
            self._file(name, end).unlink(missing_ok=True)

    def _file(self, name: str, end: str) -> Path:
        return self._folder / f"{name}{end}"

    @staticmethod
    def _json(file: Path, missing: object) -> Any:  # noqa: ANN401  (JSON)
        return json.loads(file.read_bytes()) if file.exists() else missing
