"""Transfer: measurements on their way out of one database and into another.

Three formats, told by the file's suffix. All hold environments, qualifications and records; nothing is lost between
them but the words of `detail` that are scrubbed and where a measurement had come from before:

    .db, .sqlite   a database as any other, in one file
    .jsonl         an object a line, its "type" says of what; environments first
    .csv           the same for spreadsheets: a row each, the column `type` says of what; objects and lists as JSON
"""

from autoconv.store.transfer.export import Exported, export
from autoconv.store.transfer.imports import Imported, Rejected, import_file
from autoconv.store.transfer.scrub import scrub, scrubbed
from autoconv.store.transfer.selection import Selection, shape_of

__all__ = ["Exported", "Imported", "Rejected", "Selection", "export", "import_file", "scrub", "scrubbed", "shape_of"]
