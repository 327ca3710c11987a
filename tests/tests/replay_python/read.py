"""Reads a recording as docs/recordings.md says and prints what is in it as one JSON object."""
import json
import sys

import pyarrow as pa
import pyarrow.compute


def chunks(path):
    """Whole chunks; a torn one at the end is left out."""
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as stream:
        yield stream.schema
        while True:
            try:
                yield stream.read_next_batch()
            except (StopIteration, OSError, pa.ArrowInvalid):
                return


whole = chunks(sys.argv[1])
schema = next(whole)
batches = list(whole)
for batch in batches:
    batch.validate(full=True)
table = pa.Table.from_batches(batches, schema)
records = table.filter(pa.compute.equal(table["entry"].cast(pa.string()), "record"))
answer = {
    "columns": {field.name: str(field.type) for field in schema},
    "metadata": {key.decode(): value.decode() for key, value in schema.metadata.items()},
    "chunks": len(batches),
    "rows": table.num_rows,
    "entries": dict(
        sorted((pair["values"], pair["counts"]) for pair in table["entry"].cast(pa.string()).value_counts().to_pylist())
    ),
    "records": [
        [row[name] for name in sys.argv[2].split(",")] for row in records.to_pylist()
    ],
    "paths": [path for path in table["path"].to_pylist() if path is not None],
}
try:
    import duckdb

    answer["duckdb"] = duckdb.sql(
        "SELECT kind_name, count(*) FROM records GROUP BY 1 ORDER BY 1"
    ).fetchall()
except ImportError:
    pass
json.dump(answer, sys.stdout)
