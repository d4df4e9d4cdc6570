//! Changed copies of the manifests, each with the message that it must cause.

use std::path::Path;

use togi_tests::workspace;

/// A replacement in one file, seen through an overlay.
pub(crate) struct Change {
    pub(crate) overlay: &'static str,
    pub(crate) file: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) said: &'static str,
}

impl Change {
    /// A copy of the manifests with the change made.
    pub(crate) fn apply(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&workspace().join("k8s"), copy.path());
        let file = copy.path().join(self.file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(self.from),
            "{} is not in {}",
            self.from,
            self.file
        );
        std::fs::write(file, text.replacen(self.from, self.to, 1)).unwrap();
        copy
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

const fn change(
    overlay: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    said: &'static str,
) -> Change {
    Change {
        overlay,
        file,
        from,
        to,
        said,
    }
}

/// One for each rule.
pub(crate) const ALL: [Change; 29] = [
    change(
        "local",
        "base/inference.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        "may run as root",
    ),
    change(
        "local",
        "base/inference.yaml",
        "type: RuntimeDefault",
        "type: Unconfined",
        "has no seccomp profile",
    ),
    change(
        "local",
        "base/data-prep.yaml",
        "enableServiceLinks: false",
        "hostNetwork: true",
        "has hostNetwork",
    ),
    change(
        "local",
        "base/data-prep.yaml",
        "emptyDir:\n            sizeLimit: 8Gi",
        "hostPath:\n            path: /tmp",
        "volume tmp is a hostPath",
    ),
    change(
        "local",
        "base/trainer-api.yaml",
        "allowPrivilegeEscalation: false",
        "allowPrivilegeEscalation: true",
        "may gain privileges",
    ),
    change(
        "local",
        "base/trainer-api.yaml",
        "drop: [ALL]",
        "drop: [NET_RAW]",
        "keeps capabilities",
    ),
    change(
        "local",
        "base/trainer-api.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "may write its root file system",
    ),
    change(
        "local",
        "base/trainer-worker.yaml",
        "              memory: 48Gi\n",
        "",
        "has no limits of memory",
    ),
    change(
        "local",
        "base/trainer-worker.yaml",
        "automountServiceAccountToken: false\n      enable",
        "automountServiceAccountToken: true\n      enable",
        "mounts a token",
    ),
    change(
        "local",
        "base/trainer-worker.yaml",
        "serviceAccountName: trainer",
        "serviceAccountName: nobody",
        "has no service account",
    ),
    change(
        "local",
        "overlays/local/kustomization.yaml",
        "togi-ml/togi-inference,",
        "togi-ml/inference,",
        "is none that deploy/Dockerfile makes",
    ),
    change(
        "local",
        "overlays/local/kustomization.yaml",
        "newTag: 0.1.0",
        "newTag: latest",
        "has no version",
    ),
    change(
        "local",
        "base/inference.yaml",
        "port: 7673\n              service: liveness",
        "port: 7672\n              service: liveness",
        "startupProbe asks port 7672",
    ),
    change(
        "local",
        "base/inference.yaml",
        "service: liveness\n            periodSeconds: 10",
        "service: \"\"\n            periodSeconds: 10",
        "livenessProbe asks for the service",
    ),
    change(
        "local",
        "base/inference.yaml",
        "containerPort: 7683",
        "containerPort: 7680",
        "port admin is not 7683",
    ),
    change(
        "local",
        "base/inference.yaml",
        "TOGI_STOP__GRACE_SECONDS",
        "TOGI_STOP__GRACE_SECOND",
        "unknown field `grace_second`",
    ),
    change(
        "local",
        "base/trainer-api.yaml",
        "TOGI_ROLES\n",
        "TOGI_ROLE\n",
        "TOGI_ROLE is no setting of togi-trainer",
    ),
    change(
        "local",
        "base/bases.toml",
        "url =",
        "link =",
        "unknown field `link`",
    ),
    change(
        "local",
        "base/togi.env",
        "/etc/togi/bases.toml",
        "/etc/togi/base.toml",
        "nothing is mounted at",
    ),
    change(
        "local",
        "base/trainer-api.yaml",
        "clusterIP: None\n",
        "type: ClusterIP\n",
        "service trainer is not headless",
    ),
    change(
        "local",
        "base/namespace.yaml",
        "enforce: restricted",
        "enforce: baseline",
        "does not enforce",
    ),
    change(
        "local",
        "base/network-policies.yaml",
        "podSelector: {}",
        "podSelector: {matchLabels: {app.kubernetes.io/name: inference}}",
        "denies everything",
    ),
    change(
        "local",
        "base/data-prep.yaml",
        "periodSeconds: 5",
        "periodsSeconds: 5",
        "periodsSeconds",
    ),
    change(
        "production",
        "components/keda/trainer-worker.yaml",
        "consumer: togi-train",
        "consumer: togi-prepare",
        "another consumer",
    ),
    change(
        "production",
        "components/monitoring/rules.yaml",
        "for: 5m",
        "four: 5m",
        "four",
    ),
    change(
        "production",
        "components/model-cache/volume.yaml",
        "name: models",
        "name: model",
        "there is no PersistentVolumeClaim",
    ),
    change(
        "production",
        "components/keda/trainer-worker.yaml",
        "          app.kubernetes.io/part-of: togi\n",
        "",
        "is not labelled as a part of togi",
    ),
    change(
        "production",
        "components/gpu/kustomization.yaml",
        "value: togi-inference-cuda",
        "value: togi-inference",
        "image false, limit true, TOGI_DEVICE true",
    ),
    change(
        "production",
        "components/gpu/kustomization.yaml",
        "{name: TOGI_DEVICE, value: cuda}\n      - op: replace",
        "{name: TOGI_DEVICE, value: cpu}\n      - op: replace",
        "image true, limit true, TOGI_DEVICE false",
    ),
];
