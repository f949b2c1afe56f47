"""Turns `protos/` into descriptors and stubs with the protoc inside grpcio-tools: no network, no system compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import google.api.annotations_pb2
import grpc_tools  # type: ignore[import-untyped]  # the wheel has no types
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
GENERATED = ROOT / "generated"
VALIDATE = "buf/validate/validate.proto"
# Their wheel carries messages and no type stubs; these are the files that servers and clients import.
UNTYPED = (
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)


class ContractError(Exception):
    """The contracts do not compile; the text is the compiler's own and names file and line."""


def contract_files() -> list[str]:
    """Paths of all contract files relative to `protos/`, sorted."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def _include_paths() -> list[str]:
    """Where protoc finds imports: the well-known types and `google/api` come inside installed wheels."""
    well_known = Path(str(grpc_tools.__file__)).parent / "_proto"
    googleapis = Path(str(google.api.annotations_pb2.__file__)).parents[2]
    return [f"--proto_path={PROTOS}", f"--proto_path={well_known}", f"--proto_path={googleapis}"]


def _protoc(arguments: list[str]) -> None:
    """Run protoc; plugins are found beside the interpreter that runs this."""
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])}
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    if result.returncode != 0:
        raise ContractError(result.stderr.strip() or result.stdout.strip())


def write_validation_descriptor(target: Path) -> None:
    """Write a descriptor set with `buf/validate/validate.proto` and its imports.

    protovalidate ships no `.proto` file, only the compiled descriptor; protoc reads that as well.
    """
    from protovalidate._gen.buf.validate import validate_pb  # noqa: PLC0415 - private: the only place the wheel keeps it

    files = descriptor_pb2.FileDescriptorSet()
    for module in ("descriptor", "duration", "field_mask", "timestamp"):
        wkt = __import__(f"google.protobuf.{module}_pb2", fromlist=["DESCRIPTOR"])
        files.file.add().ParseFromString(wkt.DESCRIPTOR.serialized_pb)
    files.file.add().ParseFromString(bytes(validate_pb.desc().proto.to_binary()))
    target.write_bytes(files.SerializeToString(deterministic=True))


def compile_descriptors(scratch: Path) -> bytes:
    """Compile all contracts into a serialised `google.protobuf.FileDescriptorSet` with every import.

    Comments (source info) are kept for our own files only.
    """
    validation = scratch / "validate.binpb"
    write_validation_descriptor(validation)
    target = scratch / "descriptors.binpb"
    _protoc(
        [
            *_include_paths(),
            f"--descriptor_set_in={validation}",
            f"--descriptor_set_out={target}",
            "--include_imports",
            "--include_source_info",
            *contract_files(),
        ]
    )
    files = _plain_descriptor_set().FromString(target.read_bytes())
    for file in files.file:
        if not file.name.startswith("behaviorguard/"):
            file.ClearField("source_code_info")
    return bytes(files.SerializeToString(deterministic=True))


def _plain_descriptor_set() -> Any:
    """`FileDescriptorSet` of a pool that knows no custom option.

    With options that it knows, the bytes would depend on what else the process has imported.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(descriptor_pb2.DESCRIPTOR.serialized_pb)
    return GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet"))


def write_stubs(target: Path, scratch: Path) -> None:
    """Write Python messages, gRPC stubs and type stubs for all contracts under `target`."""
    validation = scratch / "validate.binpb"
    write_validation_descriptor(validation)
    messages = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    services = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
    common = [*_include_paths(), f"--descriptor_set_in={validation}"]
    with_services = [name for name in contract_files() if "\nservice " in (PROTOS / name).read_text(encoding="utf-8")]
    _protoc([f"--descriptor_set_in={validation}", *messages, VALIDATE])
    _protoc([*_include_paths(), f"--mypy_out=quiet:{target}", *UNTYPED])
    _protoc([*common, *messages, *contract_files()])
    _protoc([*common, *services, *with_services])
