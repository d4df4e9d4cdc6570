//! Circles among the files of a crate, and among its folders.
//!
//! A file points at another if it names something of it, by `use` or by a path in its code. Tests
//! do not count, nor does `lib.rs`: what it re-exports is followed to the file that has it.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{self, Path};
use crate::source::{self, File};

type Module = Vec<String>;

/// Arrows that close a circle of folders and wait for a better place of what they point at. Each
/// has a file, the file that it points at, and where that should go. One that is gone is reported,
/// so that the list only shrinks.
const KNOWN: [(&str, &str, &str); 1] = [(
    "services/inference/src/adapters/announcer.rs",
    "services/inference/src/rpc/events.rs",
    "the events' conversion stands beside the requests', which use the adapters",
)];

/// The files of one crate by their modules.
struct Crate {
    /// The folder of its sources, with a final slash.
    src: String,
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
            src: src.to_owned(),
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

    /// Returns the first line of each file that points at each other file.
    fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for (module, (_, text)) in self.modules.iter().filter(|(module, _)| !module.is_empty()) {
            let mut pointed_at = BTreeSet::new();
            for path in imports::all(text) {
                let Some(absolute) = self.absolute(module, &path) else {
                    continue;
                };
                let to = self.target(&absolute, 0);
                if to != *module && !to.is_empty() && pointed_at.insert(to.clone()) {
                    arrows.push(Arrow {
                        from: module.clone(),
                        to,
                        line: path.line,
                    });
                }
            }
        }
        arrows
    }

    /// Removes the arrows of [`KNOWN`], and returns a line for each of them that is not there.
    fn leave_out_known(&self, arrows: &mut Vec<Arrow>) -> Vec<String> {
        let module = |name: &str| {
            let mut files = self.modules.iter().filter(|(_, (file, _))| file == name);
            files.next().map(|(module, _)| module)
        };
        let mut gone = Vec::new();
        for (from, to, _) in KNOWN
            .iter()
            .filter(|(from, ..)| from.starts_with(&self.src))
        {
            let before = arrows.len();
            arrows
                .retain(|arrow| (Some(&arrow.from), Some(&arrow.to)) != (module(from), module(to)));
            if arrows.len() == before {
                gone.push(format!(
                    "{from} no longer points at {to}: remove it from KNOWN"
                ));
            }
        }
        gone
    }

    /// Returns the module files that have further files in their folder, and the root.
    fn folders(&self) -> BTreeSet<&[String]> {
        let modules = self.modules.keys();
        modules
            .filter_map(|module| Some(module.split_last()?.1))
            .collect()
    }

    /// Returns a line for a circle: how many nodes it has, and the arrows that close it.
    fn describe(&self, what: &str, circle: &[&Arrow]) -> String {
        let file = |module: &Module| &self.modules[module].0;
        let arrow = |arrow: &&Arrow| {
            let Arrow { from, to, line } = arrow;
            format!("{}:{line} -> {}", file(from), file(to))
        };
        let arrows: Vec<_> = circle.iter().map(arrow).collect();
        format!("a circle of {what}: {}", arrows.join(", "))
    }
}

/// A line of one file that names something of another.
struct Arrow {
    from: Module,
    to: Module,
    line: usize,
}

/// A graph: each node's successors, with the arrows of files that lead there.
type Graph<'a> = BTreeMap<&'a [String], BTreeMap<&'a [String], Vec<&'a Arrow>>>;

/// Returns the graph of the nodes that stand for the files; an arrow inside of a node, or of a file
/// without a node, is left out.
fn graph<'a>(arrows: &'a [Arrow], node: impl Fn(&'a Module) -> Option<&'a [String]>) -> Graph<'a> {
    let mut graph = Graph::new();
    for arrow in arrows {
        if let (Some(from), Some(to)) = (node(&arrow.from), node(&arrow.to))
            && from != to
        {
            let successors = graph.entry(from).or_default();
            successors.entry(to).or_default().push(arrow);
        }
    }
    graph
}

/// Returns everything that can be reached from a node.
fn reached<'a>(from: &'a [String], graph: &Graph<'a>) -> BTreeSet<&'a [String]> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(node) = open.pop() {
        for next in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(*next) {
                open.push(next);
            }
        }
    }
    found
}

/// Returns the circles of a graph: the nodes of each, and the arrows between them.
fn cycles<'a>(graph: &Graph<'a>) -> Vec<(BTreeSet<&'a [String]>, Vec<&'a Arrow>)> {
    let all: BTreeMap<_, _> = graph
        .keys()
        .map(|from| (*from, reached(from, graph)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut cycles = Vec::new();
    for (node, reached) in &all {
        if !reached.contains(node) || seen.contains(node) {
            continue;
        }
        let back = |other: &&[String]| all.get(other).is_some_and(|to| to.contains(node));
        let circle: BTreeSet<&[String]> = reached.iter().copied().filter(back).collect();
        seen.extend(circle.iter().copied());
        let closing = circle.iter().flat_map(|from| &graph[from]);
        let closing = closing.filter(|(to, _)| circle.contains(*to));
        let arrows = closing.flat_map(|(_, arrows)| arrows).copied().collect();
        cycles.push((circle, arrows));
    }
    cycles
}

/// The crates whose sources are among the files.
fn crates(files: &[File]) -> Vec<Crate> {
    let sources: BTreeSet<_> = files
        .iter()
        .filter(|file| file.name.starts_with("crates/") || file.name.starts_with("services/"))
        .filter_map(|file| Some(format!("{}/src/", file.name.split_once("/src/")?.0)))
        .collect();
    sources.iter().map(|src| Crate::new(src, files)).collect()
}

/// Returns a line for each circle among the files of each crate, with the arrows that close it.
pub(crate) fn circles(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for krate in crates(files) {
        let arrows = krate.arrows();
        for (nodes, closing) in cycles(&graph(&arrows, |module| Some(module))) {
            offenders.push(krate.describe(&format!("{} files", nodes.len()), &closing));
        }
    }
    offenders
}

/// Returns a line for each circle among the files and folders that stand side by side in a folder,
/// if one of them is a folder. A folder is everything in it, with its module file.
pub(crate) fn folder_circles(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for krate in crates(files) {
        let (mut arrows, folders) = (krate.arrows(), krate.folders());
        offenders.extend(krate.leave_out_known(&mut arrows));
        for folder in &folders {
            let beside = |module: &Module| -> Option<usize> {
                module.starts_with(folder).then_some(folder.len() + 1)
            };
            let graph = graph(&arrows, |module| module.get(..beside(module)?));
            for (nodes, closing) in cycles(&graph) {
                if nodes.iter().any(|node| folders.contains(node)) {
                    let names: Vec<_> = nodes.iter().map(|node| node.join("/")).collect();
                    offenders.push(krate.describe(&names.join(", "), &closing));
                }
            }
        }
    }
    offenders
}
