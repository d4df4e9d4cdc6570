//! Renders an overlay with `kubectl` to JSON, and validates it against the schemas.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use togi_tests::{tool, workspace};

/// The overlays.
pub(crate) const OVERLAYS: [&str; 2] = ["local", "production"];

/// An overlay's objects.
pub(crate) struct Rendered {
    yaml: tempfile::NamedTempFile,
    pub(crate) objects: Vec<Value>,
}

impl Rendered {
    /// Renders an overlay of a folder.
    pub(crate) fn new(k8s: &Path, overlay: &str) -> Result<Self, String> {
        let folder = k8s.join("overlays").join(overlay);
        let rendered = Command::new(tool("kubectl"))
            .arg("kustomize")
            .arg(folder)
            .output();
        let text = checked(&rendered.unwrap())?;
        let yaml = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(yaml.path(), text).unwrap();
        let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
        let objects = python(&["-c", script, yaml.path().to_str().unwrap()])?;
        Ok(Self {
            objects: serde_json::from_str(&objects).unwrap(),
            yaml,
        })
    }

    /// Validates the objects against the API's schemas, and custom resources against ours.
    pub(crate) fn validate(&self, version: &str) -> Result<(), String> {
        let validated = Command::new(tool("kubernetes-validate"))
            .args(["--strict", "--no-warn", "--quiet", "-k", version])
            .arg(self.yaml.path())
            .output();
        checked(&validated.unwrap())?;
        let script = workspace().join("tests/strangers/custom_resources.py");
        let schemas = workspace().join("k8s/schemas");
        let arguments = [script, schemas, self.yaml.path().to_owned()];
        python(&arguments.map(|path| path.to_str().unwrap().to_owned())).map(|_| ())
    }

    /// The objects of a kind.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |object| object["kind"] == kind)
    }

    /// An object by kind and name.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.of(kind)
            .find(|object| object["metadata"]["name"] == name)
    }

    /// The templates of all pods, with the name of what makes them.
    pub(crate) fn pods(&self) -> Vec<(String, &Value)> {
        let of = |kind: &str, pointer: &str| -> Vec<(String, &Value)> {
            let named = |object: &'_ Value| text(&object["metadata"]["name"]).to_owned();
            self.objects
                .iter()
                .filter(|object| object["kind"] == kind)
                .map(|object| (named(object), object.pointer(pointer).unwrap_or(object)))
                .collect()
        };
        let mut pods = of("Deployment", "/spec/template");
        pods.extend(of("ScaledJob", "/spec/jobTargetRef/template"));
        pods
    }

    /// The names of a kind's objects.
    pub(crate) fn names(&self, kind: &str) -> BTreeSet<&str> {
        self.of(kind)
            .map(|object| text(&object["metadata"]["name"]))
            .collect()
    }
}

/// Returns a string's text; of anything else an empty one.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns the elements of a list; of anything else an empty list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn python<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<String, String> {
    let python = workspace().join(".tools/venv/bin/python");
    let output = Command::new(python).args(arguments).output();
    checked(&output.expect("tools/install k8s brings python"))
}

fn checked(output: &Output) -> Result<String, String> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        Err(said(&output.stdout) + &said(&output.stderr))
    }
}
