//! Circles among the files of a crate.
//!
//! A file points at another if it names something of it, by `use` or by a path in its code. Tests
//! do not count, nor does `lib.rs`: what it re-exports is followed to the file that has it.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{self, Path};
use crate::source::{self, File};

type Module = Vec<String>;

/// The files of one crate by their modules.
struct Crate {
    modules: BTreeMap<Module, (String, String)>,
    re_exports: Vec<(String, Vec<String>)>,
}

impl Crate {
    fn new(src: &str, files: &[File]) -> Self {
        let mut modules = BTreeMap::new();
        let is_library = files.iter().any(|file| file.name == format!("{src}lib.rs"));
        for file in files.iter().filter(|file| !file.is_test()) {
            let Some(path) = file.name.strip_prefix(src) else {
                continue;
            };
            let module = match path {
                "main.rs" if is_library => continue,
                path if path.starts_with("bin/") => continue,
                "lib.rs" | "main.rs" => Vec::new(),
                path => {
                    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
                    path.split('/').map(str::to_owned).collect()
                }
            };
            let text = source::without_tests(&source::bare(&file.text));
            modules.insert(module, (file.name.clone(), text));
        }
        let root = modules.get(&Vec::new());
        let re_exports = root.map_or_else(Vec::new, |(_, text)| imports::re_exports(text));
        Self {
            modules,
            re_exports,
        }
    }

    /// Returns a path from the crate's root, or nothing if it leaves the crate.
    fn absolute(&self, module: &Module, path: &Path) -> Option<Vec<String>> {
        let parts = &path.parts;
        let first = parts.first()?.as_str();
        let ups = parts.iter().take_while(|part| *part == "super").count();
        let child = || {
            module
                .iter()
                .chain(&parts[..1])
                .cloned()
                .collect::<Module>()
        };
        let (base, rest) = match first {
            "crate" => (&module[..0], 1),
            "self" => (&module[..], 1),
            "super" => (&module[..module.len().checked_sub(ups)?], ups),
            _ if self.modules.contains_key(&child()) => (&module[..], 0),
            _ => return None,
        };
        Some(base.iter().chain(&parts[rest..]).cloned().collect())
    }

    /// Returns the module that a path from the root names.
    fn target(&self, path: &[String], depth: usize) -> Module {
        let known = (1..=path.len()).take_while(|n| self.modules.contains_key(&path[..*n]));
        let length = known.last().unwrap_or(0);
        let exported = self
            .re_exports
            .iter()
            .find(|(name, _)| path.first() == Some(name));
        match exported {
            Some((_, real)) if length == 0 && depth < 5 => {
                let real = real
                    .iter()
                    .filter(|part| *part != "crate" && *part != "self");
                let real: Vec<_> = real.chain(&path[1..]).cloned().collect();
                self.target(&real, depth + 1)
            }
            _ => path[..length].to_vec(),
        }
    }

    /// Returns which module points at which, and the line that says so first.
    fn arrows(&self) -> BTreeMap<&Module, BTreeMap<Module, usize>> {
        let mut arrows: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (module, (_, text)) in self.modules.iter().filter(|(module, _)| !module.is_empty()) {
            let to = arrows.entry(module).or_default();
            for path in imports::all(text) {
                let Some(absolute) = self.absolute(module, &path) else {
                    continue;
                };
                let target = self.target(&absolute, 0);
                if target != *module && !target.is_empty() {
                    to.entry(target).or_insert(path.line);
                }
            }
        }
        arrows
    }
}

/// Returns everything that can be reached from a module.
fn reached<'a>(
    from: &'a Module,
    arrows: &'a BTreeMap<&Module, BTreeMap<Module, usize>>,
) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for next in arrows.get(module).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(next) {
                open.push(next);
            }
        }
    }
    found
}

/// Returns a line for each circle among the files of each crate, with the arrows that close it.
pub(crate) fn circles(files: &[File]) -> Vec<String> {
    let sources: BTreeSet<_> = files
        .iter()
        .filter(|file| file.name.starts_with("crates/") || file.name.starts_with("services/"))
        .filter_map(|file| Some(format!("{}/src/", file.name.split_once("/src/")?.0)))
        .collect();
    let mut offenders = Vec::new();
    for src in sources {
        let krate = Crate::new(&src, files);
        let arrows = krate.arrows();
        let all: BTreeMap<_, _> = arrows
            .keys()
            .map(|from| (*from, reached(from, &arrows)))
            .collect();
        let mut seen = BTreeSet::new();
        for (module, reached) in &all {
            if !reached.contains(*module) || seen.contains(*module) {
                continue;
            }
            let back = |other: &&Module| all.get(*other).is_some_and(|to| to.contains(*module));
            let circle: BTreeSet<&Module> = reached.iter().copied().filter(back).collect();
            seen.extend(circle.iter().copied());
            let closing: Vec<_> = circle
                .iter()
                .flat_map(|from| {
                    arrows[*from]
                        .iter()
                        .map(move |(to, line)| (*from, to, line))
                })
                .filter(|(_, to, _)| circle.contains(to))
                .map(|(from, to, line)| {
                    format!(
                        "{}:{line} -> {}",
                        krate.modules[from].0, krate.modules[to].0
                    )
                })
                .collect();
            offenders.push(format!(
                "a circle of {}: {}",
                circle.len(),
                closing.join(", ")
            ));
        }
    }
    offenders
}
