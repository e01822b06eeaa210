"""Small damage to a real model: bits, lengths, and fields that are deleted, repeated, moved or set to extreme values."""

import onnx

INTEGERS = [-(1 << 63), -(1 << 31), -7, -1, 0, 1, 2, 3, 7, 255, 1 << 20, 1 << 31, 1 << 33, 1 << 62, (1 << 63) - 1]
FLOATS = [float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-45, 3.4e38, -3.4e38]
OPS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})


def flip_bits(data, random):
    data = bytearray(data)
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def cut_out(data, random):
    start = random.randrange(len(data))
    return data[:start] + data[start + random.randint(1, 64) :]


def truncate(data, random):
    return data[: random.randrange(len(data))]


def change_fields(data, random):
    proto = onnx.ModelProto.FromString(data)
    for _ in range(random.randint(1, 3)):
        change_field(proto, random)
    return proto.SerializeToString()


def change_field(proto, random):
    """One field somewhere below the proto, mostly in its graph, chosen level by level, so that rare fields are met often."""
    message = proto if random.random() < 0.2 or not proto.HasField("graph") else proto.graph
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, held = random.choice(fields)
        if field.message_type is None:
            change_scalar(message, field, held, random)
            return
        if hasattr(held, "add"):
            if random.random() < 0.15:
                change_list(held, random)
                return
            held = random.choice(held)
        elif random.random() < 0.03:
            message.ClearField(field.name)
            return
        message = held


def change_list(held, random):
    what = random.randrange(3)
    if what == 0:
        del held[random.randrange(len(held))]
    elif what == 1:
        held.append(random.choice(held))
    else:
        other = held[random.randrange(len(held))]
        copied = type(other)()
        copied.CopyFrom(held[random.randrange(len(held))])
        other.CopyFrom(copied)


def change_scalar(message, field, held, random):
    if random.random() < 0.15:
        message.ClearField(field.name)
    elif hasattr(held, "append"):
        i = random.randrange(len(held))
        what = random.randrange(4)
        if what == 0:
            del held[i]
        elif what == 1:
            held.append(held[i])
        else:
            held[i] = changed(field, held[i], random)
    else:
        setattr(message, field.name, changed(field, held, random))


def changed(field, value, random):
    """Another value of the same Python type."""
    if field.enum_type is not None:
        return random.choice(field.enum_type.values).number
    if isinstance(value, int):
        low, high = (-(1 << 31), (1 << 31) - 1) if field.type == field.TYPE_INT32 else (-(1 << 63), (1 << 63) - 1)
        if field.name in ("data_type", "elem_type"):
            return random.randrange(30)
        new = random.choice([*INTEGERS, value + 1, value - 1, value * 2, -value])
        return min(max(new, 0 if field.type == field.TYPE_UINT64 else low), high)
    if isinstance(value, float):
        return random.choice([*FLOATS, -value, value * 2])
    if field.name == "op_type":
        return random.choice(OPS)
    if isinstance(value, bytes):
        return flip_bits(value, random) if value and random.random() < 0.5 else value[: len(value) // 2]
    return random.choice(["", value + "_", "x", "ai.onnx", "\u00e9", value[:1]])


KINDS = [flip_bits, cut_out, truncate, *[change_fields] * 7]


def mutate(data, random):
    """The model's bytes with a little damage of a random kind."""
    return random.choice(KINDS)(data, random)
