"""Print the custom resource definitions of Kubeflow Trainer v2, made from its own models.

The Trainer itself is not on any package index, its models are. They need an environment of their own::

    python -m venv /tmp/trainer
    /tmp/trainer/bin/pip install kubeflow_trainer_api==2.3.0 pyyaml
    /tmp/trainer/bin/python infra/cluster/trainer/crds.py > infra/cluster/trainer/crds.yaml

What the models don't say is missing: defaults, and rules in CEL.
"""

import sys
from typing import Any

import kubeflow_trainer_api.models as models
import yaml

Schema = dict[str, Any]

GROUP = "trainer.kubeflow.org"
ANYTHING: Schema = {"x-kubernetes-preserve-unknown-fields": True}
OPAQUE = ("ObjectMeta", "PodSpec", "Affinity")
"""Parts that are taken as they are. They are other projects' schemas, and long."""

NUMBER_OR_TEXT: Schema = {"x-kubernetes-int-or-string": True}
KEPT = ("enum", "maximum", "minimum", "maxLength", "minLength", "pattern", "maxItems", "minItems")
RESOURCES = (
    (models.TrainerV1alpha1TrainJob, "TrainJob", "Namespaced"),
    (models.TrainerV1alpha1ClusterTrainingRuntime, "ClusterTrainingRuntime", "Cluster"),
)


class Converter:
    """Turns the JSON schema of a model into the structural one that Kubernetes wants: no references, one type each.

    A definition becomes one object wherever it is used, so that YAML holds it once.
    """

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions
        self._done: dict[str, Schema] = {}

    def convert(self, schema: Schema) -> Schema:
        """Return the structural schema of ``schema``."""
        if "$ref" in schema:
            return self._definition(schema["$ref"].rpartition("/")[2])
        alternatives = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
        if len(alternatives) == 1:
            return self.convert(alternatives[0])
        if alternatives:
            return NUMBER_OR_TEXT if {one.get("type") for one in alternatives} == {"integer", "string"} else ANYTHING
        match schema.get("type"):
            case None:
                return ANYTHING
            case "array":
                return {"type": "array", "items": self.convert(schema.get("items", {}))}
            case "object":
                return {"type": "object", **self._fields(schema)}
            case simple:
                return {"type": simple, **{name: schema[name] for name in KEPT if name in schema}}

    def _definition(self, name: str) -> Schema:
        if name.endswith(("Quantity", "IntOrString")):
            return NUMBER_OR_TEXT
        if name.endswith(OPAQUE):
            return ANYTHING
        if name not in self._done:
            self._done[name] = self.convert(self._definitions[name])
        return self._done[name]

    def _fields(self, schema: Schema) -> Schema:
        if schema.get("properties"):
            fields = {name: self.convert(value) for name, value in schema["properties"].items()}
            return {"properties": fields, **({"required": schema["required"]} if schema.get("required") else {})}
        values = schema.get("additionalProperties")
        return {"additionalProperties": self.convert(values)} if isinstance(values, dict) else ANYTHING


def definition(model: Any, kind: str, scope: str) -> Schema:
    """Return the custom resource definition of one kind."""
    described = model.model_json_schema(by_alias=True)
    schema = Converter(described.get("$defs", {})).convert({**described, "$defs": {}})
    schema["properties"]["metadata"] = {"type": "object"}
    plural = f"{kind.lower()}s"
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [version],
        },
    }


if __name__ == "__main__":
    sys.stdout.write("# Made by crds.py, which says how.\n")
    yaml.safe_dump_all([definition(*resource) for resource in RESOURCES], sys.stdout, sort_keys=False, width=120)
