"""A gRPC client as a stranger writes it: stubs made from proto/, nothing of Togi's own.

    grpc_client.py ENDPOINT PROTO_FOLDER QUESTION

Prints one JSON object: the data sets, the jobs, the adapters served, and the streamed answer to QUESTION.
"""
import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf.json_format import MessageToDict
from grpc_tools import protoc


def stubs(folder: pathlib.Path) -> None:
    out = tempfile.mkdtemp()
    files = [str(path) for path in sorted(folder.glob("togi/**/*.proto"))]
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    if protoc.main(["", f"-I{folder}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]):
        sys.exit("the contract does not compile with protoc")
    sys.path.insert(0, out)


def main() -> None:
    endpoint, proto, question = sys.argv[1:4]
    stubs(pathlib.Path(proto))
    from togi.dataprep.v1 import dataprep_pb2, dataprep_pb2_grpc
    from togi.inference.v1 import inference_pb2, inference_pb2_grpc
    from togi.trainer.v1 import trainer_pb2, trainer_pb2_grpc

    with grpc.insecure_channel(endpoint.removeprefix("http://")) as channel:
        data_prep = dataprep_pb2_grpc.DataPrepServiceStub(channel)
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        inference = inference_pb2_grpc.InferenceServiceStub(channel)

        request = inference_pb2.GenerateRequest(
            instruction=inference_pb2.Instruction(instruction=question),
            options=inference_pb2.Options(greedy=True, max_new_tokens=24, no_repeat_ngram_size=0),
        )
        events = list(inference.Generate(request))
        try:
            trainer.GetJob(trainer_pb2.GetJobRequest(job="no-such-job"))
            unknown = "OK"
        except grpc.RpcError as error:
            unknown = error.code().name
        print(json.dumps({
            "datasets": [MessageToDict(d) for d in data_prep.ListDatasets(dataprep_pb2.ListDatasetsRequest()).datasets],
            "jobs": [MessageToDict(j) for j in trainer.ListJobs(trainer_pb2.ListJobsRequest()).jobs],
            "served": [MessageToDict(a) for a in inference.ListAdapters(inference_pb2.ListAdaptersRequest()).adapters],
            "events": [event.WhichOneof("event") for event in events],
            "answer": "".join(event.piece.text for event in events),
            "unknown_job": unknown,
        }, ensure_ascii=False))


main()
