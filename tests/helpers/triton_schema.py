"""The part of Triton's ModelConfig that our config uses, as a protobuf message type built from a table of
facts.

In:  nothing.
Out: `message()`, an empty ModelConfig; text with a field that is not in the table, or of another type, does
not parse into it.
Elsewhere: the whole schema, model_config.proto of triton-inference-server/common, with which test_triton.py
compares this table where tritonclient is installed.
"""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STRING, INT32, INT64, UINT64, MESSAGE, ENUM = 9, 5, 3, 4, 11, 14
"""Types of FieldDescriptorProto."""

FIELDS = {
    "ModelConfig": [
        ("name", 1, STRING),
        ("platform", 2, STRING),
        ("backend", 17, STRING),
        ("max_batch_size", 4, INT32),
        ("input", 5, "[ModelInput]"),
        ("output", 6, "[ModelOutput]"),
        ("instance_group", 7, "[ModelInstanceGroup]"),
        ("default_model_filename", 8, STRING),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("parameters", 14, "[ModelConfig.ParametersEntry]"),
    ],
    "ModelConfig.ParametersEntry": [("key", 1, STRING), ("value", 2, "ModelParameter")],
    "ModelInput": [("name", 1, STRING), ("data_type", 2, "=DataType"), ("dims", 4, [INT64])],
    "ModelOutput": [
        ("name", 1, STRING),
        ("data_type", 2, "=DataType"),
        ("dims", 3, [INT64]),
        ("label_filename", 4, STRING),
    ],
    "ModelInstanceGroup": [
        ("kind", 4, "=ModelInstanceGroup.Kind"),
        ("count", 2, INT32),
        ("profile", 5, [STRING]),
    ],
    "ModelDynamicBatching": [
        ("preferred_batch_size", 1, [INT32]),
        ("max_queue_delay_microseconds", 2, UINT64),
    ],
    "ModelParameter": [("string_value", 1, STRING)],
}
"""Message -> (field, number, type). "[X]" and [type]: repeated; "=X": an enum."""

ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "ModelInstanceGroup.Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def message():
    """An empty ModelConfig of this table."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName("facts.ModelConfig"))()


@functools.cache
def _pool():
    """The table as protobuf knows it. Kept, because messages of protobuf 4.23 crash when it is gone."""
    file = descriptor_pb2.FileDescriptorProto(name="facts.proto", package="facts", syntax="proto3")
    made = {}
    for name, fields in FIELDS.items():
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        made[name].options.map_entry = inner == "ParametersEntry"
        for field, number, kind in fields:
            _field(made[name].field.add(name=field, number=number), kind)
    for name, values in ENUMS.items():
        outer, _, inner = name.rpartition(".")
        enum = (made[outer] if outer else file).enum_type.add(name=inner)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _field(field, kind):
    field.label = 3 if isinstance(kind, list) or str(kind).startswith("[") else 1
    if isinstance(kind, list):
        (field.type,) = kind
    elif isinstance(kind, int):
        field.type = kind
    else:
        field.type = ENUM if kind.startswith("=") else MESSAGE
        field.type_name = ".facts." + kind.strip("[]=")
