"""The documents that are read from the interpreter's standard library."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank.data import stdlib, stdlib_inspect
from rerank.data.corpus import Document
from rerank.data.stdlib import StdlibCounts, read_stdlib, stdlib_id
from rerank.errors import DataError

WELL_KNOWN = [
    "__future__", "abs", "argparse.ArgumentParser", "argparse.ArgumentParser.add_argument", "array.array",
    "ast.parse", "asyncio.gather", "asyncio.Queue.get", "asyncio.run", "base64.b64encode", "builtins", "bytes.hex",
    "collections.Counter", "collections.deque", "collections.deque.popleft", "collections.namedtuple",
    "collections.OrderedDict", "concurrent.futures.ThreadPoolExecutor", "contextlib.contextmanager",
    "copy.deepcopy", "csv.reader", "dataclasses.dataclass", "datetime.datetime.strptime",
    "decimal.Decimal.quantize", "dict", "dict.get", "enum.Enum", "enumerate", "functools.lru_cache",
    "functools.partial", "functools.reduce", "gc.collect", "glob.glob", "hashlib.sha256", "heapq.heappush",
    "importlib.import_module", "inspect.signature", "io.BytesIO.getvalue", "io.StringIO", "itertools.chain",
    "itertools.groupby", "json", "json.dumps", "json.JSONDecoder", "KeyError", "len", "list.sort",
    "logging.getLogger", "math.sqrt", "multiprocessing.Pool", "open", "operator.itemgetter", "os", "os.getcwd",
    "os.listdir", "os.mkdir", "os.path", "os.path.exists", "os.path.join", "os.walk", "pathlib.Path",
    "pathlib.Path.exists", "pathlib.Path.glob", "pathlib.Path.read_text", "pickle.dumps", "platform.system",
    "print", "property", "queue.Queue.get", "random.choice", "random.getrandbits", "random.randint",
    "re.Match.group", "re.Pattern.findall", "re.sub", "secrets.token_hex", "select.select", "shlex.split",
    "shutil.copytree", "signal.signal", "smtplib.SMTP.sendmail", "socket.socket.recv", "sorted", "sqlite3.connect",
    "sqlite3.Cursor.execute", "ssl.create_default_context", "statistics.mean", "str", "str.format", "str.split",
    "struct.pack", "subprocess.Popen", "subprocess.run", "sys.exit", "tempfile.TemporaryDirectory", "textwrap.wrap",
    "threading.local", "threading.Thread.join", "time.sleep", "time.strftime", "timeit.timeit", "tomllib.loads",
    "traceback.print_exc", "types.SimpleNamespace", "typing.NamedTuple", "typing.Optional", "unicodedata.normalize",
    "unittest.mock.patch", "unittest.TestCase.assertEqual", "urllib.parse.quote", "urllib.request.urlopen",
    "uuid.uuid4", "warnings.warn", "xml.etree.ElementTree.parse", "zip", "zipfile.ZipFile.extractall",
    "zlib.compress",
]  # fmt: skip


@pytest.fixture(scope="module")
def reading() -> tuple[list[Document], StdlibCounts]:
    return read_stdlib()


@pytest.fixture(scope="module")
def by_id(reading: tuple[list[Document], StdlibCounts]) -> dict[str, Document]:
    return {document.id: document for document in reading[0]}


ReadFake = Callable[..., tuple[dict[str, Document], StdlibCounts]]


@pytest.fixture
def read_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadFake:
    """Reads a folder made of the given files, without any compiled module unless `compiled` lists entries."""

    def read(
        files: dict[str, str | bytes], compiled: list[stdlib_inspect.Entry] | None = None
    ) -> tuple[dict[str, Document], StdlibCounts]:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        lines = "\n".join(json.dumps(entry._asdict()) for entry in compiled or [])
        monkeypatch.setattr(stdlib, "_child_output", lambda: lines)
        documents, counts = read_stdlib(tmp_path)
        return {document.id: document for document in documents}, counts

    return read


def fake_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A folder with one module; compiled modules are read by a shell script in place of the interpreter."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.py").write_text('"""The only module here."""\n')
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    return sources


# The real standard library


def test_the_id_carries_the_minor_version() -> None:
    assert stdlib_id() == f"stdlib-{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_a_well_known_name_is_a_document(by_id: dict[str, Document], name: str) -> None:
    assert name in by_id


def test_several_thousand_documents_with_unique_ids_are_counted(
    reading: tuple[list[Document], StdlibCounts], by_id: dict[str, Document]
) -> None:
    documents, counts = reading
    assert len(by_id) == len(documents) == counts.documents
    assert counts.documents > 4000
    assert counts.parsed > 300
    assert counts.unreadable == ()
    assert counts.inspected + len(counts.missing) == len(stdlib_inspect.MODULES)


def test_texts_are_clean(reading: tuple[list[Document], StdlibCounts]) -> None:
    for document in reading[0]:
        assert document.text == document.text.strip()
        assert "$self" not in document.title
        assert "\n" not in document.title
        assert " at 0x" not in document.title
        (document.title + document.text).encode("utf-8")


def test_no_private_name_and_no_test_is_a_document(by_id: dict[str, Document]) -> None:
    private = {id_ for id_ in by_id if any(part.startswith("_") for part in id_.split("."))}
    assert private == {name for name in by_id if name.split(".")[0] == "__future__"}
    assert not {"idlelib", "lib2to3", "encodings", "test"} & {id_.split(".")[0] for id_ in by_id}
    assert "unittest.test" not in by_id


def test_documents_are_ordered_by_module_and_then_as_in_the_source(
    reading: tuple[list[Document], StdlibCounts],
) -> None:
    order = [document.id for document in reading[0]]
    names = ["abc", "json", "json.dump", "json.dumps", "os", "os.makedirs", "os.walk", "zipfile"]
    assert [name for name in order if name in names] == names


@pytest.mark.parametrize(
    "title",
    [
        "os.walk(top, topdown=True, onerror=None, followlinks=False)",
        "os.listdir(path=None)",
        "str.split(sep=None, maxsplit=-1)",
        "sorted(iterable, /, *, key=None, reverse=False)",
        "module json",
        "class datetime.timezone",
        "property pathlib.PurePath.name",
        "asyncio.open_connection(host=None, port=None, *, limit=_DEFAULT_LIMIT, **kwds)",
        "struct.pack(format, v1, v2, ...)",
        "typing.Optional",
    ],
)
def test_titles_show_names_as_users_write_them(reading: tuple[list[Document], StdlibCounts], title: str) -> None:
    assert any(document.title.startswith(title) for document in reading[0])


def test_sources_are_parsed_and_not_imported_and_another_process_reads_the_same(
    reading: tuple[list[Document], StdlibCounts],
) -> None:
    code = """
import hashlib, sys, sysconfig
from rerank.data.stdlib import read_stdlib
sysconfig.get_paths()  # imports a module of its own
before = set(sys.modules)
documents, _ = read_stdlib()
assert set(sys.modules) == before, set(sys.modules) - before
assert not {"antigravity", "this", "turtle", "tkinter", "pdb"} & set(sys.modules)
print(hashlib.sha256(repr([tuple(d) for d in documents]).encode()).hexdigest())
"""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(stdlib.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert child.returncode == 0, child.stderr
    here = hashlib.sha256(repr([tuple(document) for document in reading[0]]).encode()).hexdigest()
    assert child.stdout.strip() == here


# What is read from a source


def test_a_source_with_a_syntax_error_is_left_out_and_counted(read_fake: ReadFake) -> None:
    documents, counts = read_fake({
        "good.py": '"""Good to read indeed."""',
        "broken.py": '"""Never to be read."""\ndef f(:',
        "package/nul.py": b'"""Never to be read."""\0',
    })  # fmt: skip
    assert list(documents) == ["good"]
    assert counts.parsed == 1
    assert counts.unreadable == ("broken", "package.nul")


def test_a_source_in_another_encoding_is_read_by_its_own_declaration(read_fake: ReadFake) -> None:
    latin = '# -*- coding: latin-1 -*-\n"""Fa\xe7ade of the caf\xe9."""'.encode("latin-1")
    undeclared = '"""Fa\xe7ade of the caf\xe9."""'.encode("latin-1")
    documents, counts = read_fake({"declared.py": latin, "undeclared.py": undeclared})
    assert documents["declared"].text == "Façade of the café."
    assert counts.unreadable == ("undeclared",)


def test_a_source_with_an_invalid_escape_is_read_without_a_warning(read_fake: ReadFake) -> None:
    documents, _ = read_fake({"escape.py": b'"""Three plain words \\d."""'})
    assert documents["escape"].text == "Three plain words \\d."


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python module in"):
        read_stdlib(tmp_path)


def test_tests_private_modules_and_foreign_folders_are_not_read(read_fake: ReadFake) -> None:
    text = '"""Three plain words."""'
    names = ["test/a.py", "json/tests/a.py", "_private.py", "site-packages/a.py", "encodings/ascii.py", "__main__.py"]
    documents, _ = read_fake({**dict.fromkeys(names, text), "public.py": text})
    assert list(documents) == ["public"]


def test_short_and_missing_docstrings_and_private_names_give_no_document(read_fake: ReadFake) -> None:
    source = """
def short(): "Two words."
def bare(): pass
def _private(): "Three plain words."
class C:
    def __len__(self): "Three plain words."
    def method(self):
        "A method of C."
        def nested(): "Three nested words."
"""
    documents, _ = read_fake({"m.py": source})
    assert list(documents) == ["m.C.method"]


def test_definitions_inside_conditions_are_found_and_the_documented_one_counts(read_fake: ReadFake) -> None:
    source = """
try:
    from _fast import f
except ImportError:
    def f(x): "Slow but sure f."
if condition:
    def g(): pass
else:
    def g(a): "The other g here."
"""
    documents, _ = read_fake({"m.py": source})
    assert [document.title for document in documents.values()] == ["m.f(x)", "m.g(a)"]


def test_a_class_carries_the_parameters_and_the_docstring_of_its_init(read_fake: ReadFake) -> None:
    source = '''
class C(Base):
    """A class of things."""
    def __init__(self, a, /, b=1, *, c: int = 2):
        """Give it a first."""
    def method(self, x=None): "Do this to x."
    @classmethod
    def make(cls, y): "Make one of y."
    @staticmethod
    def free(z): "Free of any self."
    @property
    def name(self): "The name it has."
    class Inner:
        "A class in one."
'''
    documents, _ = read_fake({"m.py": source})
    assert documents["m.C"].text == "A class of things.\n\nGive it a first."
    assert [document.title for document in documents.values()] == [
        "class m.C(a, /, b=1, *, c: int=2)",
        "m.C.method(x=None)",
        "m.C.make(y)",
        "m.C.free(z)",
        "property m.C.name",
        "class m.C.Inner",
    ]


def test_a_name_is_known_by_the_shortest_module_that_offers_it(read_fake: ReadFake) -> None:
    documents, _ = read_fake({
        "pkg/__init__.py": """
from .parts import *
from ._hidden import secret as known, unlisted
__all__ = ['Part', 'known']
""",
        "pkg/parts.py": '__all__ = ("Part",)\nclass Part:\n    "Part of a whole."\ndef other(): "Not listed in all."',
        "pkg/_hidden.py": 'def secret(): "Known by another name."\ndef unlisted(): "Nobody can see it."',
        "user.py": "from pkg.parts import Part",
    })  # fmt: skip
    assert list(documents) == ["pkg.known", "pkg.Part", "pkg.parts.other"]
    assert documents["pkg.known"].title == "pkg.known()"


def test_a_class_has_the_members_of_its_private_bases(read_fake: ReadFake) -> None:
    public = """
from _base import Far
__all__ = ["C"]
class _Near(Far):
    def near(self): "Near to the class."
class C(_Near): pass
"""
    private = """
class Far:
    def far(self): "Far from the class."
    def near(self): "Hidden by the nearer."
"""
    documents, _ = read_fake({"m.py": public, "_base.py": private})
    assert {id_: document.text for id_, document in documents.items()} == {
        "m.C.near": "Near to the class.",
        "m.C.far": "Far from the class.",
    }


def test_a_private_base_of_a_public_base_is_documented_there(read_fake: ReadFake) -> None:
    source = """
class _Hidden:
    def f(self): "Do it for all."
class _Other(_Hidden): pass
class Parent(_Hidden): pass
class C(_Other, Parent): pass
"""
    assert list(read_fake({"m.py": source})[0]) == ["m.Parent.f"]


def test_base_classes_in_a_circle_end(read_fake: ReadFake) -> None:
    source = "class _A(_B):\n    def a(self): 'The first of two.'\nclass _B(_A): pass\nclass C(_A): pass"
    assert list(read_fake({"m.py": source})[0]) == ["m.C.a"]


def test_the_internal_module_of_os_path_gives_its_names_to_it(read_fake: ReadFake) -> None:
    posixpath = """
'''Common path operations here.'''
from genericpath import *
def join(a, *p): "Join two or more."
"""
    genericpath = "'''Not to be seen.'''\ndef exists(path): 'Whether a path exists.'"
    ntpath = "def join(path): 'Join for other systems.'"
    documents, _ = read_fake({"posixpath.py": posixpath, "genericpath.py": genericpath, "ntpath.py": ntpath})
    assert list(documents) == ["os.path", "os.path.join", "os.path.exists"]


# Duplicates


def test_of_equal_texts_under_one_last_name_the_shortest_id_stays(read_fake: ReadFake) -> None:
    source = """
class LongName:
    def close(self): "Close it for good."
class Base:
    def close(self): "Close it for good."
    def shut(self): "Close it for good."
"""
    documents, counts = read_fake({"m.py": source, "other.py": 'def close(): "Close it for good."'})
    assert list(documents) == ["m.Base.close", "m.Base.shut", "other.close"]
    assert counts.duplicates == 1


def test_a_text_that_many_names_share_is_boilerplate(read_fake: ReadFake) -> None:
    source = "\n".join(f'def f{i}(): "See the base class."' for i in range(5)) + '\ndef g(): "A text of its own."'
    documents, counts = read_fake({"m.py": source})
    assert list(documents) == ["m.g"]
    assert counts.duplicates == 5


# Compiled modules


def compiled(module: str, name: str, kind: str = "function", signature: str | None = "(x, /)") -> stdlib_inspect.Entry:
    return stdlib_inspect.Entry(module, name, kind, signature, "The compiled one says.")


def test_the_documentation_of_the_source_wins_over_that_of_the_compiled_module(read_fake: ReadFake) -> None:
    documents, _ = read_fake(
        {"heapq.py": 'def heappush(heap, item): "The Python one says."\ndef heapify(x): pass'},
        [compiled("heapq", "heappush"), compiled("heapq", "heapify")],
    )
    assert {id_: document.text for id_, document in documents.items()} == {
        "heapq.heappush": "The Python one says.",
        "heapq.heapify": "The compiled one says.",
    }


def test_builtins_have_no_module_in_their_id_unless_a_module_has_their_name(read_fake: ReadFake) -> None:
    documents, _ = read_fake(
        {"sorted.py": '"""A module called sorted."""'},
        [compiled("builtins", name) for name in ("sorted", "print", "sorted.sub")],
    )
    assert list(documents) == ["builtins.sorted", "print", "builtins.sorted.sub", "sorted"]
    assert documents["sorted"].title == "module sorted"


@pytest.mark.parametrize(
    ("doc", "title"),
    [
        ("f(a[, b]) -> list\n\nGive a list back.", "m.f(a[, b])"),
        ("M.f(a)\n\nGive a list back.", "m.f(a)"),
        ("f(a) -> list\nf(a, b) -> list of two", "m.f"),
        ("Give a list back, see f(x).", "m.f"),
        ("f(a,\n  b)\n--\n\nGive a list back.", "m.f"),
    ],
)
def test_a_signature_told_by_the_docstring_goes_into_the_title(read_fake: ReadFake, doc: str, title: str) -> None:
    documents, _ = read_fake({"a.py": ""}, [stdlib_inspect.Entry("m", "f", "function", None, doc)])
    assert documents["m.f"].title == title


def test_a_signature_that_the_interpreter_left_in_the_docstring_is_cut_off(read_fake: ReadFake) -> None:
    doc = "f(a, b)\n--\n\nGive a list back."
    documents, _ = read_fake({"a.py": ""}, [stdlib_inspect.Entry("m", "f", "function", None, doc)])
    assert documents["m.f"] == Document("m.f", "m.f(a, b)", "Give a list back.")


def test_compiled_entries_leave_out_what_a_module_only_uses() -> None:
    names = {entry.name for entry in stdlib_inspect.entries("statistics")}
    assert "mean" in names
    assert not {"itemgetter", "sqrt", "Counter"} & names
    assert "open" not in {entry.name for entry in stdlib_inspect.entries("io")}


def test_compiled_entries_name_an_alias_once() -> None:
    names = {entry.name for entry in stdlib_inspect.entries("builtins")}
    assert "OSError" in names
    assert "IOError" not in names


def test_compiled_entries_give_private_bases_to_the_first_public_class() -> None:
    assert "socket.recv" in {entry.name for entry in stdlib_inspect.entries("socket")}
    assert "SSLSocket.recv_into" not in {entry.name for entry in stdlib_inspect.entries("ssl")}


def test_a_missing_compiled_module_is_written_as_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stdlib_inspect, "MODULES", ("no_such_module", "errno"))
    stdlib_inspect.main()
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {"missing": "no_such_module"}
    assert json.loads(second)["module"] == "errno"


def test_missing_compiled_modules_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = fake_interpreter(tmp_path, monkeypatch, """echo '{"missing": "zlib"}'""")
    documents, counts = read_stdlib(sources)
    assert [document.id for document in documents] == ["one"]
    assert counts.missing == ("zlib",)
    assert counts.inspected == len(stdlib_inspect.MODULES) - 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'out of luck' >&2; exit 3", r"exit code 3 \(out of luck\); run .*python -I -S"),
        ("kill -9 $$", "exit code -9"),
        ("echo '{\"module\": '", "where .* writes JSON"),
    ],
)
def test_a_child_that_fails_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    sources = fake_interpreter(tmp_path, monkeypatch, script)
    with pytest.raises(DataError, match=message):
        read_stdlib(sources)


def test_a_child_that_never_ends_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = fake_interpreter(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(stdlib, "_CHILD_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"took longer than 0\.2 seconds"):
        read_stdlib(sources)


@pytest.mark.parametrize("executable", ["", "/no/such/python"])
def test_an_interpreter_that_does_not_start_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    sources = fake_interpreter(tmp_path, monkeypatch, "")
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(DataError, match="does not start"):
        read_stdlib(sources)
