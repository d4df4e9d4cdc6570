//! Our rules. Each looks at all objects of an overlay and returns a line for each violation.

use std::collections::BTreeSet;

use serde_json::Value;
use togi_tests::workspace;

use crate::programs::{configuration, gpu};
use crate::render::{Rendered, list, text};

/// Returns the violations of all rules.
pub(crate) fn broken(rendered: &Rendered) -> Vec<String> {
    let mut said = Vec::new();
    let images = images();
    for (name, pod) in rendered.pods() {
        let mut say = |what: String| said.push(format!("{name}: {what}"));
        security(pod, &mut say);
        for container in containers(pod) {
            resources(container, &mut say);
            let image = text(&container["image"]);
            let bare = image.rsplit('/').next().unwrap_or(image);
            let (bare, tag) = bare.split_once(':').unwrap_or((bare, ""));
            if !images.contains(bare) {
                say(format!(
                    "image {image} is none that deploy/Dockerfile makes"
                ));
            }
            if tag.is_empty() || tag == "latest" {
                say(format!("image {image} has no version"));
            }
        }
        for container in list(&pod["spec"]["containers"]) {
            configuration(rendered, pod, container, &mut say);
            gpu(rendered, container, &mut say);
        }
        if pod["spec"]["automountServiceAccountToken"] != false {
            say("mounts a token of the Kubernetes API".into());
        }
        if pod["metadata"]["labels"]["app.kubernetes.io/part-of"] != "togi" {
            say(
                "is not labelled as a part of togi, so that no network policy lets it speak".into(),
            );
        }
        let account = text(&pod["spec"]["serviceAccountName"]);
        if rendered.find("ServiceAccount", account).is_none() {
            say(format!("has no service account {account:?}"));
        }
        references(rendered, pod, &mut say);
    }
    let mut say = |what: String| said.push(what);
    services(rendered, &mut say);
    networks(rendered, &mut say);
    monitoring(rendered, &mut say);
    said
}

/// Returns the images that the Dockerfile builds: one for each program, and the CUDA variants of
/// those that compute.
fn images() -> BTreeSet<String> {
    let dockerfile = std::fs::read_to_string(workspace().join("deploy/Dockerfile")).unwrap();
    assert!(dockerfile.contains("org.opencontainers.image.title=\"${PROGRAM}\""));
    let head: String = dockerfile
        .lines()
        .take_while(|line| line.starts_with('#'))
        .collect();
    let words = head.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words
        .filter(|word| word.starts_with("togi"))
        .map(str::to_owned)
        .collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let of = |which: &str| list(&pod["spec"][which]).iter();
    of("initContainers").chain(of("containers"))
}

/// Checks pod security's profile `restricted` and a read-only root file system.
fn security(pod: &Value, say: &mut impl FnMut(String)) {
    let context = &pod["spec"]["securityContext"];
    if context["runAsNonRoot"] != true || context["runAsUser"].as_u64().is_none_or(|id| id == 0) {
        say("may run as root".into());
    }
    if context["seccompProfile"]["type"] != "RuntimeDefault" {
        say("has no seccomp profile".into());
    }
    for part in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod["spec"][part] == true {
            say(format!("has {part}"));
        }
    }
    let allowed = [
        "configMap",
        "emptyDir",
        "persistentVolumeClaim",
        "secret",
        "projected",
    ];
    for volume in list(&pod["spec"]["volumes"]) {
        let kinds = volume
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "name");
        for kind in kinds.filter(|kind| !allowed.contains(&kind.as_str())) {
            say(format!("volume {} is a {kind}", text(&volume["name"])));
        }
    }
    for container in containers(pod) {
        let (name, context) = (text(&container["name"]), &container["securityContext"]);
        if context["allowPrivilegeEscalation"] != false {
            say(format!("container {name} may gain privileges"));
        }
        if context["capabilities"]["drop"] != serde_json::json!(["ALL"]) {
            say(format!("container {name} keeps capabilities"));
        }
        if context["readOnlyRootFilesystem"] != true {
            say(format!("container {name} may write its root file system"));
        }
    }
}

fn resources(container: &Value, say: &mut impl FnMut(String)) {
    for which in ["requests", "limits"] {
        for what in ["cpu", "memory"] {
            if container["resources"][which][what].is_null() {
                let name = text(&container["name"]);
                say(format!("container {name} has no {which} of {what}"));
            }
        }
    }
}

/// Checks that everything that a pod refers to exists.
fn references(rendered: &Rendered, pod: &Value, say: &mut impl FnMut(String)) {
    let maps = rendered.names("ConfigMap");
    let claims = rendered.names("PersistentVolumeClaim");
    for volume in list(&pod["spec"]["volumes"]) {
        let (map, claim) = (
            &volume["configMap"]["name"],
            &volume["persistentVolumeClaim"]["claimName"],
        );
        if map.is_string() && !maps.contains(text(map)) {
            say(format!("there is no ConfigMap {map}"));
        }
        if claim.is_string() && !claims.contains(text(claim)) {
            say(format!("there is no PersistentVolumeClaim {claim}"));
        }
    }
    for container in containers(pod) {
        for source in list(&container["envFrom"]) {
            let map = &source["configMapRef"]["name"];
            if map.is_string() && !maps.contains(text(map)) {
                say(format!("there is no ConfigMap {map}"));
            }
        }
        let volumes: BTreeSet<&str> = list(&pod["spec"]["volumes"])
            .iter()
            .map(|volume| text(&volume["name"]))
            .collect();
        for mount in list(&container["volumeMounts"]) {
            if !volumes.contains(text(&mount["name"])) {
                say(format!("there is no volume {}", mount["name"]));
            }
        }
    }
}

/// Checks that services are headless and select existing pods.
fn services(rendered: &Rendered, say: &mut impl FnMut(String)) {
    for service in rendered.of("Service") {
        let name = text(&service["metadata"]["name"]);
        if service["spec"]["clusterIP"] != "None" {
            say(format!("service {name} is not headless"));
        }
        let selector = &service["spec"]["selector"];
        let pods = rendered.pods();
        let chosen = pods.iter().find(|(_, pod)| matches(selector, pod));
        let Some((_, pod)) = chosen else {
            say(format!("service {name} selects no pod"));
            continue;
        };
        for port in list(&service["spec"]["ports"]) {
            let mut ports = containers(pod).flat_map(|container| list(&container["ports"]));
            let target = ports.find(|own| own["name"] == port["targetPort"]);
            if target.is_none_or(|own| own["containerPort"] != port["port"]) {
                say(format!(
                    "service {name}: port {} is not the pod's",
                    port["name"]
                ));
            }
        }
    }
    let labels = &rendered.find("Namespace", "togi").unwrap_or(&Value::Null)["metadata"]["labels"];
    if labels["pod-security.kubernetes.io/enforce"] != "restricted" {
        say("the namespace does not enforce the profile restricted".into());
    }
}

fn matches(selector: &Value, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    let pairs = selector.as_object().into_iter().flatten();
    pairs.clone().count() > 0 && pairs.into_iter().all(|(key, value)| labels[key] == *value)
}

/// Checks that everything is denied by default and that each policy selects existing pods; NATS's
/// policies come with its chart.
fn networks(rendered: &Rendered, say: &mut impl FnMut(String)) {
    let all = rendered.of("NetworkPolicy").find(|policy| {
        let spec = &policy["spec"];
        spec["podSelector"] == serde_json::json!({})
            && list(&spec["policyTypes"]).len() == 2
            && spec["ingress"].is_null()
            && spec["egress"].is_null()
    });
    if all.is_none() {
        say("no network policy denies everything".into());
    }
    for policy in rendered.of("NetworkPolicy") {
        let chosen = &policy["spec"]["podSelector"]["matchLabels"];
        let is_nats = chosen["app.kubernetes.io/name"] == "nats";
        let pods = rendered.pods();
        let selects = pods.iter().any(|(_, pod)| matches(chosen, pod));
        if chosen.is_object() && !is_nats && !selects {
            let name = text(&policy["metadata"]["name"]);
            say(format!("network policy {name} selects no pod"));
        }
    }
}

/// Checks that the operator's rules are those of deploy/rules.yaml, and that KEDA scales by the
/// consumer that the workers read.
fn monitoring(rendered: &Rendered, say: &mut impl FnMut(String)) {
    for rules in rendered.of("PrometheusRule") {
        let plain = std::fs::read_to_string(workspace().join("deploy/rules.yaml")).unwrap();
        for rule in list(&rules["spec"]["groups"])
            .iter()
            .flat_map(|group| list(&group["rules"]))
        {
            let alert = text(&rule["alert"]);
            let expr = text(&rule["expr"])
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty());
            if !plain.contains(alert) || !expr.clone().all(|line| plain.contains(line)) {
                say(format!("rule {alert} is not the one of deploy/rules.yaml"));
            }
        }
    }
    for trigger in rendered
        .of("ScaledJob")
        .flat_map(|job| list(&job["spec"]["triggers"]))
    {
        let metadata = &trigger["metadata"];
        if metadata["stream"] != togi_runtime::events::JOBS_STREAM
            || metadata["consumer"] != "togi-train"
        {
            say("the ScaledJob waits for another consumer than the workers'".into());
        }
    }
    for scaled in rendered.of("ScaledObject") {
        let name = text(&scaled["spec"]["scaleTargetRef"]["name"]);
        if rendered.find("Deployment", name).is_none() {
            say(format!(
                "the ScaledObject scales {name}, which is not there"
            ));
        }
    }
}
