"""Reads a data set with pyarrow alone, over Flight and from the shards' files.

    flight_client.py ENDPOINT DATASET SHARD.parquet...

Prints one JSON object: row and token counts both ways, whether a resumed read continues where it should, and whether
both ways hold the same rows.
"""
import json
import sys

import pyarrow.flight as flight
import pyarrow.parquet as parquet


def rows(table):
    columns = ["sample_id", "input_ids", "labels", "length", "category"]
    return list(zip(*(table.column(name).to_pylist() for name in columns)))


def main() -> None:
    endpoint, dataset, *files = sys.argv[1:]
    client = flight.connect(endpoint.replace("http://", "grpc://"))

    def read(**ticket):
        body = json.dumps({"dataset": dataset, "seed": "7", "shuffle": True, **ticket}).encode()
        return rows(client.do_get(flight.Ticket(body)).read_all())

    listed = [info.total_records for info in client.list_flights()]
    info = client.get_flight_info(flight.FlightDescriptor.for_path(dataset))
    from_endpoint = client.do_get(info.endpoints[0].ticket).read_all().num_rows
    schema = client.get_schema(flight.FlightDescriptor.for_path(dataset)).schema
    shuffled = read()
    half = len(shuffled) // 2
    from_files = [row for path in files for row in rows(parquet.read_table(path))]
    print(json.dumps({
        "listed": listed,
        "schema": [f"{field.name}: {field.type}" for field in schema],
        "info_rows": info.total_records,
        "endpoint_rows": from_endpoint,
        "flight_rows": len(shuffled),
        "file_rows": len(from_files),
        "tokens": sum(row[3] for row in from_files),
        "same_rows": sorted(shuffled, key=repr) == sorted(from_files, key=repr),
        "is_shuffled": shuffled != from_files,
        "repeats": read() == shuffled,
        "resumes": read(offset=str(half)) == shuffled[half:],
        "next_epoch_differs": read(epoch="1") != shuffled,
        "lengths_agree": all(len(ids) == len(labels) == length for _, ids, labels, length, _ in from_files),
    }))


main()
