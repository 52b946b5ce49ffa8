"""Check the manifests of deploy/kubernetes/ as an API server would that refuses fields which it does not know.

    python tests/deploy/manifests.py CRDS MANIFEST ...     # needs PyYAML, jsonschema and kubernetes-validate

CRDS: a folder of CustomResourceDefinitions. A line is printed for each fault, and nothing where there is none.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml


def load(text: str) -> Any:
    """One document, by libyaml where PyYAML has it: the definitions are long."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def strict(schema: Any) -> Any:
    """The schema, in which objects have no fields but those that it names."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: strict(value) for key, value in schema.items() if key not in ("format", "default")}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


def definitions(folder: Path) -> dict[tuple[str, str], Any]:
    """The strict schema of each kind that the definitions define, by its apiVersion and its name."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        spec = load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            for name in ("apiVersion", "kind", "metadata"):  # of every object, whether a definition repeats it or not
                schema["properties"].setdefault(name, True)
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def pods(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The specifications of pods in an object: what has containers."""
    if isinstance(value, dict):
        if "containers" in value:
            yield path, value
        for key, inner in value.items():
            yield from pods(inner, f"{path}.{key}")


def by_kubernetes(manifest: Any) -> Iterator[str]:
    """Faults by the schemas of Kubernetes itself."""
    newest = kubernetes_validate.latest_version()
    try:
        kubernetes_validate.validate(manifest, newest, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


def faults(manifest: Any, kinds: dict[tuple[str, str], Any]) -> Iterator[str]:
    """What is wrong with a manifest, a line each."""
    schema = kinds.get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        yield from by_kubernetes(manifest)
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        yield f"{error.json_path}: {error.message}"
    for path, spec in pods(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        yield from (f"{path}: {fault}" for fault in by_kubernetes(pod))


def main(folder: str, *paths: str) -> None:
    kinds = definitions(Path(folder))
    for path in paths:
        for fault in faults(load(Path(path).read_text()), kinds):
            print(f"{Path(path).name}: {fault}")


if __name__ == "__main__":
    main(*sys.argv[1:])
