//! Our rules about the program in a container: its environment, ports, probes and GPU.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use togi_tests::program;

use crate::render::{Rendered, list, text};

/// Returns a container's environment, from its ConfigMaps and its own list, without secrets.
fn environment<'a>(rendered: &'a Rendered, container: &'a Value) -> BTreeMap<&'a str, &'a str> {
    let mut all = BTreeMap::new();
    for source in list(&container["envFrom"]) {
        let name = text(&source["configMapRef"]["name"]);
        let data = rendered.find("ConfigMap", name).map(|map| &map["data"]);
        let pairs = data.and_then(Value::as_object).into_iter().flatten();
        all.extend(pairs.map(|(key, value)| (key.as_str(), text(value))));
    }
    let own = list(&container["env"]).iter();
    all.extend(own.map(|pair| (text(&pair["name"]), text(&pair["value"]))));
    all
}

/// Runs the program with `--validate`: it must accept its environment, and the probes and named
/// ports must be those that it reports.
pub(crate) fn configuration(
    rendered: &Rendered,
    pod: &Value,
    container: &Value,
    say: &mut impl FnMut(String),
) {
    let image = text(&container["image"]);
    let bare = image.rsplit('/').next().unwrap_or(image);
    let name = bare
        .split(':')
        .next()
        .unwrap_or(bare)
        .trim_end_matches("-cuda");
    let binary = program().with_file_name(name);
    if !binary.is_file() {
        return say(format!("there is no program {name}"));
    }
    let mut environment: BTreeMap<String, String> = environment(rendered, container)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    if let Some(config) = environment.get("TOGI_CONFIG").cloned() {
        match mounted(rendered, pod, container, &config) {
            Some(content) => {
                let file = folder.path().join("config.toml");
                std::fs::write(&file, content).unwrap();
                environment.insert("TOGI_CONFIG".into(), file.to_str().unwrap().into());
            }
            None => say(format!("TOGI_CONFIG: nothing is mounted at {config}")),
        }
    }
    // `--validate` does not open a device.
    let output = Command::new(&binary)
        .arg("--validate")
        .env_clear()
        .envs(&environment)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(ports) = ports(&printed) else {
        return say(format!(
            "--validate: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    };
    for key in environment.keys().filter(|key| key.starts_with("TOGI_")) {
        let setting = key["TOGI_".len()..].to_ascii_lowercase();
        if !setting.contains("__") && setting != "config" && !is_setting(name, &setting) {
            say(format!("{key} is no setting of {name}"));
        }
    }
    probes(container, ports, say);
}

/// Checks that the CUDA image, the GPU resource and the device setting come together.
pub(crate) fn gpu(rendered: &Rendered, container: &Value, say: &mut impl FnMut(String)) {
    let image = text(&container["image"]).contains("-cuda");
    let limit = !container["resources"]["limits"]["nvidia.com/gpu"].is_null();
    let device = environment(rendered, container).get("TOGI_DEVICE") == Some(&"cuda");
    if image != limit || limit != device {
        say(format!(
            "of a GPU it has: image {image}, limit {limit}, TOGI_DEVICE {device}"
        ));
    }
}

/// Returns a setting outside all sections from the program's default.toml.
fn is_setting(program: &str, setting: &str) -> bool {
    let defaults = match program {
        "togi-data-prep" => togi_data_prep::config::DEFAULTS,
        "togi-trainer" => togi_trainer::config::DEFAULTS,
        _ => togi_inference::DEFAULTS,
    };
    let table: toml::Table = defaults.parse().unwrap();
    table.contains_key(setting)
}

/// The gRPC and admin port of "togi-x: valid; grpc 0.0.0.0:1, admin 0.0.0.0:2".
fn ports(printed: &str) -> Option<[u64; 2]> {
    let after = |word: &str| -> Option<u64> {
        let rest = printed.split_once(word)?.1;
        let address = rest.split([',', '\n']).next()?;
        let (host, port) = address.rsplit_once(':')?;
        (host == "0.0.0.0").then(|| port.parse().ok())?
    };
    Some([after("grpc ")?, after("admin ")?])
}

fn probes(container: &Value, [grpc, admin]: [u64; 2], say: &mut impl FnMut(String)) {
    let expected = [
        ("startupProbe", "liveness"),
        ("livenessProbe", "liveness"),
        ("readinessProbe", ""),
    ];
    for (probe, service) in expected {
        let asked = &container[probe]["grpc"];
        if asked["port"] != grpc {
            say(format!(
                "{probe} asks port {}, the program has gRPC at {grpc}",
                asked["port"]
            ));
        }
        if text(&asked["service"]) != service {
            say(format!("{probe} asks for the service {}", asked["service"]));
        }
    }
    let named = |name: &str| {
        let ports = list(&container["ports"]).iter();
        let mut ports = ports.filter(|port| port["name"] == name);
        ports.next().map(|port| port["containerPort"].clone())
    };
    for (name, port) in [("grpc", grpc), ("admin", admin)] {
        if named(name) != Some(port.into()) {
            say(format!(
                "port {name} is not {port}, where the program has it"
            ));
        }
    }
}

/// Returns the content of a file that a ConfigMap mounts into a container.
fn mounted(rendered: &Rendered, pod: &Value, container: &Value, path: &str) -> Option<String> {
    let path = PathBuf::from(path);
    let folder = path.parent()?.to_str()?;
    let mut mounts = list(&container["volumeMounts"]).iter();
    let mount = mounts.find(|mount| mount["mountPath"] == folder)?;
    let mut volumes = list(&pod["spec"]["volumes"]).iter();
    let volume = volumes.find(|volume| volume["name"] == mount["name"])?;
    let map = rendered.find("ConfigMap", text(&volume["configMap"]["name"]))?;
    let content = &map["data"][path.file_name()?.to_str()?];
    content.as_str().map(str::to_owned)
}
