"""Holds the objects of a rendered overlay whose kinds Kubernetes does not know itself against our own schemas.

  python custom_resources.py FOLDER_OF_SCHEMAS FILE.yaml

A folder has one file KIND.json for each kind. Prints what is wrong, a line each; 1 if anything is, or a kind has no schema.
"""

import json
import pathlib
import sys

import jsonschema
import yaml

BUILT_IN = {
    "ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "ServiceAccount",
}


def main():
    schemas, rendered = map(pathlib.Path, sys.argv[1:])
    wrong = []
    for thing in yaml.safe_load_all(rendered.read_text(encoding="utf-8")):
        kind, name = thing["kind"], thing["metadata"]["name"]
        if kind in BUILT_IN:
            continue
        schema = schemas / f"{kind}.json"
        if not schema.exists():
            wrong.append(f"{kind}/{name}: there is no schema {schema.name}")
            continue
        validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
        for error in validator.iter_errors(thing):
            wrong.append(f"{kind}/{name}: {error.json_path}: {error.message}")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
