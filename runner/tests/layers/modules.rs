//! The module tree of a crate, read from its sources, and the resolution of paths in it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "new variants can be added to the enums of syn at any time"
)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::{Attribute, Item, ItemUse, Meta, Token, UseTree, Visibility};

/// One module, in a file of its own or inline.
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) items: Vec<Item>,
    parent: Option<usize>,
    names: HashMap<String, Vec<Meaning>>,
    globs: Vec<Vec<String>>,
    /// Words in macro calls at the top level. Such a macro can define items with these names.
    macro_words: HashSet<String>,
}

/// The meaning of a name in its module. A name can have several, such as a module and a function.
enum Meaning {
    Module(usize),
    Item,
    Import(Vec<String>),
}

/// The end of a resolved path.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Module(usize),
    /// An item, by its defining module and name.
    Item(usize, String),
}

/// One name of a `use` declaration, `None` for a glob.
pub(crate) struct Import {
    pub(crate) name: Option<String>,
    pub(crate) path: Vec<String>,
}

/// All modules of a crate. The first one is its root.
pub(crate) struct Crate {
    pub(crate) modules: Vec<Module>,
}

impl Crate {
    /// Reads the crate with the sources `src`, whose root is `lib.rs`.
    pub(crate) fn read(src: &Path) -> Self {
        let mut tree = Self { modules: Vec::new() };
        tree.read_file(&src.join("lib.rs"), src, None);
        tree
    }

    fn read_file(&mut self, file: &Path, children: &Path, parent: Option<usize>) -> usize {
        let text = fs::read_to_string(file).unwrap();
        let items = syn::parse_file(&text).unwrap().items;
        self.add(file, children, items, parent)
    }

    fn add(
        &mut self,
        file: &Path,
        children: &Path,
        items: Vec<Item>,
        parent: Option<usize>,
    ) -> usize {
        let id = self.modules.len();
        let items: Vec<Item> = items.into_iter().filter(|item| !is_test_code(item)).collect();
        self.modules.push(Module {
            file: file.to_owned(),
            items: Vec::new(),
            parent,
            names: HashMap::new(),
            globs: Vec::new(),
            macro_words: HashSet::new(),
        });
        for item in &items {
            self.define(id, file, children, item);
        }
        self.modules[id].items = items;
        id
    }

    fn define(&mut self, id: usize, file: &Path, children: &Path, item: &Item) {
        let name = match item {
            Item::Const(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Fn(item) => &item.sig.ident,
            Item::Static(item) => &item.ident,
            Item::Struct(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Mod(module) => {
                let name = module.ident.to_string();
                let below = children.join(&name);
                let child = match &module.content {
                    Some((_, items)) => self.add(file, &below, items.clone(), Some(id)),
                    None => {
                        let alone = children.join(format!("{name}.rs"));
                        let path = if alone.exists() { alone } else { below.join("mod.rs") };
                        self.read_file(&path, &below, Some(id))
                    }
                };
                return self.name(id, name, Meaning::Module(child));
            }
            Item::Use(declaration) => {
                for import in imports(declaration) {
                    match import.name {
                        Some(name) => self.name(id, name, Meaning::Import(import.path)),
                        None => self.modules[id].globs.push(import.path),
                    }
                }
                return;
            }
            Item::Macro(call) => match &call.ident {
                Some(name) => name,
                None => {
                    return words(call.mac.tokens.clone(), &mut self.modules[id].macro_words);
                }
            },
            _ => return,
        };
        self.name(id, name.to_string(), Meaning::Item);
    }

    fn name(&mut self, id: usize, name: String, meaning: Meaning) {
        self.modules[id].names.entry(name).or_default().push(meaning);
    }

    /// Returns the modules and items that `path` can name in the module `from`. A path to a part of
    /// an item, such as a variant, leads to the item. A path to another crate leads nowhere.
    pub(crate) fn resolve(&self, from: usize, path: &[String]) -> Vec<Target> {
        self.walk(from, path, &mut HashSet::new())
    }

    fn walk(
        &self,
        from: usize,
        path: &[String],
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        let mut found = Vec::new();
        for (n, segment) in path.iter().enumerate() {
            let next = match (n, segment.as_str()) {
                (0, "crate") => vec![Target::Module(0)],
                (0, "self") => vec![Target::Module(from)],
                (0, "super") => self.parents(&[Target::Module(from)]),
                (_, "super") => self.parents(&found),
                (0, name) => self.lookup(from, name, seen),
                (_, name) => {
                    found.iter().flat_map(|target| self.inside(target, name, seen)).collect()
                }
            };
            found = next;
        }
        found
    }

    fn inside(
        &self,
        target: &Target,
        name: &str,
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        match target {
            Target::Module(id) => self.lookup(*id, name, seen),
            Target::Item(..) => vec![target.clone()],
        }
    }

    fn parents(&self, of: &[Target]) -> Vec<Target> {
        let parent = |target: &Target| match target {
            Target::Module(id) => self.modules[*id].parent.map(Target::Module),
            Target::Item(..) => None,
        };
        of.iter().filter_map(parent).collect()
    }

    /// `seen` ends imports that lead to themselves, such as globs of each other.
    fn lookup(&self, id: usize, name: &str, seen: &mut HashSet<(usize, String)>) -> Vec<Target> {
        if !seen.insert((id, name.to_owned())) {
            return Vec::new();
        }
        let module = &self.modules[id];
        let mut found = Vec::new();
        for meaning in module.names.get(name).into_iter().flatten() {
            match meaning {
                Meaning::Module(child) => found.push(Target::Module(*child)),
                Meaning::Item => found.push(Target::Item(id, name.to_owned())),
                Meaning::Import(path) => found.extend(self.walk(id, path, seen)),
            }
        }
        if found.is_empty() && module.macro_words.contains(name) {
            found.push(Target::Item(id, name.to_owned()));
        }
        if found.is_empty() {
            for glob in &module.globs {
                for target in self.walk(id, glob, seen) {
                    if let Target::Module(other) = target {
                        found.extend(self.lookup(other, name, seen));
                    }
                }
            }
        }
        seen.remove(&(id, name.to_owned()));
        found
    }
}

/// Whether the item exists in tests only.
fn is_test_code(item: &Item) -> bool {
    let attributes: &[Attribute] = match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    };
    has_test_condition(attributes)
}

/// Whether one of the attributes is `cfg(test)` or `cfg(all(test, …))`.
pub(crate) fn has_test_condition(attributes: &[Attribute]) -> bool {
    let requires_test = |meta: &Meta| match meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|all| all.iter().any(|meta| meta.path().is_ident("test"))),
        Meta::List(_) | Meta::NameValue(_) => false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Meta>().is_ok_and(|meta| requires_test(&meta))
    })
}

/// Whether the declaration passes names on instead of importing them for the module's own use.
pub(crate) fn is_reexport(declaration: &ItemUse) -> bool {
    !matches!(declaration.vis, Visibility::Inherited)
}

/// Returns the names that a `use` declaration imports.
pub(crate) fn imports(declaration: &ItemUse) -> Vec<Import> {
    let mut found = Vec::new();
    flatten(&declaration.tree, &mut Vec::new(), &mut found);
    found
}

fn flatten(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<Import>) {
    let (last, name) = match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            flatten(&part.tree, path, found);
            path.pop();
            return;
        }
        UseTree::Group(group) => {
            return group.items.iter().for_each(|tree| flatten(tree, path, found));
        }
        UseTree::Glob(_) => return found.push(Import { name: None, path: path.clone() }),
        UseTree::Name(part) => (part.ident.to_string(), part.ident.to_string()),
        UseTree::Rename(part) => (part.ident.to_string(), part.rename.to_string()),
    };
    let mut path = path.clone();
    // `self` in a group names the module before the group.
    let name = if name == "self" { path.last().cloned().unwrap_or(name) } else { name };
    if last != "self" || path.is_empty() {
        path.push(last);
    }
    found.push(Import { name: Some(name), path });
}

fn words(tokens: TokenStream, found: &mut HashSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => {
                found.insert(word.to_string());
            }
            TokenTree::Group(group) => words(group.stream(), found),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}
