//! Which file depends on which, and the cycles among them.
//!
//! A file depends on another if it names an item that the other defines: in an import for its own
//! use, or by a path in its code, its macro calls or the functions that an attribute names. A
//! `mod` declaration or a re-export alone is not a dependency. A path through a re-export leads to
//! the file that defines the item.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Item, ItemMod, ItemUse, Meta, Stmt};

use super::modules::{Crate, Target, has_test_condition, imports, is_reexport};

/// Keys of serde attributes whose value is a path.
const PATH_KEYS: &[&str] = &[
    "default",
    "deserialize_with",
    "schema_with",
    "serialize_with",
    "skip_serializing_if",
    "with",
];

/// The files of a crate, and for each the files that it depends on, with the items that it names.
pub(crate) struct Dependencies(BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>);

impl Dependencies {
    /// Reads the crate with the sources `src`. Files are named relative to it.
    pub(crate) fn read(src: &Path) -> Self {
        let tree = Crate::read(src);
        let mut files = BTreeMap::new();
        for (id, module) in tree.modules.iter().enumerate() {
            let own = module.file.strip_prefix(src).unwrap();
            let mut reader = Reader { tree: &tree, id, locals: Vec::new(), items: BTreeSet::new() };
            module.items.iter().for_each(|item| reader.visit_item(item));
            let uses: &mut BTreeMap<_, BTreeSet<_>> = files.entry(own.to_owned()).or_default();
            for (defined_in, item) in reader.items {
                let file = tree.modules[defined_in].file.strip_prefix(src).unwrap();
                if file != own {
                    uses.entry(file.to_owned()).or_default().insert(item);
                }
            }
        }
        Self(files)
    }

    /// Returns the cycles as sets of files, each of which depends on every other one in its set,
    /// directly or not.
    pub(crate) fn cycles(&self) -> Vec<BTreeSet<PathBuf>> {
        let reachable: BTreeMap<_, _> =
            self.0.keys().map(|file| (file, self.reachable(file))).collect();
        let cycle = |file: &PathBuf| -> BTreeSet<PathBuf> {
            let mutual = |other: &&PathBuf| reachable[*other].contains(file);
            reachable[file].iter().filter(mutual).cloned().collect()
        };
        let cycles: BTreeSet<_> = self.0.keys().map(cycle).filter(|set| !set.is_empty()).collect();
        cycles.into_iter().collect()
    }

    fn reachable(&self, file: &PathBuf) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut open = vec![file];
        while let Some(file) = open.pop() {
            for next in self.0[file].keys() {
                if found.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        found
    }

    /// Returns a line for each dependency within a cycle.
    pub(crate) fn describe(&self, cycle: &BTreeSet<PathBuf>) -> String {
        let mut text = String::new();
        for file in cycle {
            for (other, items) in self.0[file].iter().filter(|(other, _)| cycle.contains(*other)) {
                let items: Vec<&str> = items.iter().map(String::as_str).collect();
                let (file, other) = (file.display(), other.display());
                text += &format!("  {file} uses {} of {other}\n", items.join(", "));
            }
        }
        text
    }
}

/// Collects the items that one module names.
struct Reader<'a> {
    tree: &'a Crate,
    id: usize,
    /// The imports of the blocks around the current position.
    locals: Vec<HashMap<String, Vec<String>>>,
    /// The items by defining module and name.
    items: BTreeSet<(usize, String)>,
}

impl Reader<'_> {
    fn read(&mut self, path: &[String]) {
        let local = self.locals.iter().rev().find_map(|names| names.get(path.first()?));
        let path = match local {
            Some(import) => &[import, &path[1..]].concat(),
            None => path,
        };
        for target in self.tree.resolve(self.id, path) {
            if let Target::Item(module, name) = target {
                self.items.insert((module, name));
            }
        }
    }

    /// Reads the paths in the tokens of a macro. A word alone can be a variable: it counts if it is
    /// a type or is called.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |n: usize, c: char| matches!(tokens.get(n), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let mut n = 0;
        while n < tokens.len() {
            match &tokens[n] {
                TokenTree::Group(group) => self.read_tokens(group.stream()),
                TokenTree::Ident(first) if n == 0 || !(is(n - 1, '.') || is(n - 1, '\'')) => {
                    let mut path = vec![first.to_string()];
                    while is(n + 1, ':') && is(n + 2, ':') {
                        let Some(TokenTree::Ident(next)) = tokens.get(n + 3) else { break };
                        path.push(next.to_string());
                        n += 3;
                    }
                    let is_called = is(n + 1, '!')
                        || matches!(tokens.get(n + 1), Some(TokenTree::Group(group))
                            if group.delimiter() == Delimiter::Parenthesis);
                    if path.len() > 1 || is_called || path[0].starts_with(char::is_uppercase) {
                        self.read(&path);
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            n += 1;
        }
    }

    /// Reads the functions and types that an attribute names in strings.
    fn read_strings(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for part in tokens.windows(3) {
            let [TokenTree::Ident(key), TokenTree::Punct(_), TokenTree::Literal(value)] = part
            else {
                continue;
            };
            if PATH_KEYS.contains(&key.to_string().as_str()) {
                let text = value.to_string();
                let path: Vec<_> = text.trim_matches('"').split("::").map(str::to_owned).collect();
                self.read(&path);
                // `with` names a module with two functions.
                for function in ["serialize", "deserialize"].map(str::to_owned) {
                    self.read(&[path.as_slice(), &[function]].concat());
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, _: &'ast ItemMod) {
        // A separate reader visits the nested module.
    }

    fn visit_item_use(&mut self, declaration: &'ast ItemUse) {
        if is_reexport(declaration) {
            return;
        }
        for import in imports(declaration) {
            // A glob of a module counts for the names that the code uses from it.
            self.read(&import.path);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let mut names = HashMap::new();
        for statement in &block.stmts {
            if let Stmt::Item(Item::Use(declaration)) = statement {
                let named = imports(declaration).into_iter();
                names.extend(named.filter_map(|import| Some((import.name?, import.path))));
            }
        }
        self.locals.push(names);
        visit::visit_block(self, block);
        self.locals.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.read(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.read_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.read_tokens(list.tokens.clone());
            self.read_strings(list.tokens.clone());
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !has_test_condition(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }
}
