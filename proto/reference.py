"""The reference of the API as Markdown: all services, messages and enums of `prunewatch/v1` with their comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

Field = FieldDescriptorProto
PACKAGE = "prunewatch.v1"
HEAD = """# Reference

Every call, message and enum of the package `prunewatch.v1`. Made by `make proto` from `proto/prunewatch/v1/`: change
that, not this page. How the calls belong together, statuses and errors: [api.md](api.md).
"""
# Numbers of fields in descriptor.proto, by which comments are found.
MESSAGES, ENUMS, SERVICES, METHODS, VALUES, FIELDS = 4, 5, 6, 2, 2, 2


def reference(files: FileDescriptorSet) -> str:
    """The page, of the files of the package; they need their source info."""
    parts = [HEAD]
    for file in files.file:
        if file.package == PACKAGE:
            parts += _page_of(file)
    return "\n".join(parts).rstrip() + "\n"


def _page_of(file: FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location}
    for i, service in enumerate(file.service):
        yield from _service(service, comments, (SERVICES, i))
    for i, message in enumerate(file.message_type):
        yield from _message(message, comments, (MESSAGES, i))
    for i, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (ENUMS, i))


def _service(service: ServiceDescriptorProto, comments: dict[tuple[int, ...], str], path: tuple[int, ...]) -> list[str]:
    rows = [
        [
            f"`{method.name}`",
            _streamed(method.client_streaming, method.input_type),
            _streamed(method.server_streaming, method.output_type),
            comments[(*path, METHODS, i)],
        ]
        for i, method in enumerate(service.method)
    ]
    return [f"## {service.name}\n", comments[path] + "\n", *_table(["method", "request", "response", ""], rows)]


def _message(message: DescriptorProto, comments: dict[tuple[int, ...], str], path: tuple[int, ...]) -> list[str]:
    rows = []
    for i, field in enumerate(message.field):
        one_of = field.HasField("oneof_index") and not field.proto3_optional
        choice = f"one of `{message.oneof_decl[field.oneof_index].name}`" if one_of else ""
        rows.append([f"`{field.name}`", _type(field), choice, comments[(*path, FIELDS, i)]])
    head = [f"### {message.name}\n", comments[path] + "\n"]
    return [*head, *_table(["field", "type", "", ""], rows)] if rows else head


def _enum(enum: EnumDescriptorProto, comments: dict[tuple[int, ...], str], path: tuple[int, ...]) -> list[str]:
    rows = [[f"`{value.name}`", str(value.number), comments[(*path, VALUES, i)]] for i, value in enumerate(enum.value)]
    return [f"### {enum.name}\n", comments[path] + "\n", *_table(["value", "number", ""], rows)]


def _type(field: Field) -> str:
    name = (
        _linked(field.type_name)
        if field.type_name
        else f"`{Field.Type.Name(field.type).removeprefix('TYPE_').lower()}`"
    )
    before = "repeated " if field.label == Field.LABEL_REPEATED else "optional " if field.proto3_optional else ""
    return before + name


def _streamed(streaming: bool, type_name: str) -> str:
    return f"{'stream of ' if streaming else ''}{_linked(type_name)}"


def _linked(type_name: str) -> str:
    """A link to what is on this page, else the full name."""
    name = type_name.removeprefix(".")
    own = name.removeprefix(f"{PACKAGE}.")
    return f"`{name}`" if own == name else f"[`{own}`](#{own.lower()})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines), ""]
