//! Lines of `/proc/self/mountinfo` that are cgroup mounts.

use std::path::PathBuf;

use crate::model::limits::Controller;

/// One mounted cgroup hierarchy.
pub(super) struct Mount {
    /// The mounted directory inside the hierarchy, `/` for all of it.
    pub root: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Whether it is cgroup2.
    pub is_v2: bool,
    options: Vec<String>,
}

impl Mount {
    /// Reads a line; `None` if it is no cgroup mount.
    ///
    /// `36 31 0:33 ROOT POINT OPTIONS [TAG...] - TYPE SOURCE SUPER-OPTIONS`: the number of tags varies.
    pub fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescape(place.next()?), unescape(place.next()?));
        let mut kind = kind.split(' ');
        let is_v2 = match kind.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = kind.nth(1).unwrap_or("").split(',').map(str::to_owned).collect();
        Some(Self { root, point: PathBuf::from(point), is_v2, options })
    }

    /// Says whether the hierarchy drives a controller on v1.
    pub fn drives(&self, controller: Controller) -> bool {
        self.options.iter().any(|option| option == controller.v1_name())
    }

    /// Says whether the hierarchy drives any controller that has limits; a named one (`name=systemd`) does not.
    pub fn drives_any(&self) -> bool {
        Controller::ALL.into_iter().any(|controller| self.drives(controller))
    }

    /// Finds the hierarchy's path in the text of `/proc/PID/cgroup`, below the mount point.
    pub fn own(&self, cgroup: &str) -> Option<String> {
        let is_of = |names: &str| names.split(',').any(|name| self.options.iter().any(|option| option == name));
        let mut lines =
            cgroup.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
        lines.find_map(|[names, path]: [&str; 2]| is_of(names).then(|| self.inside(path)).flatten())
    }

    /// Returns whether the hierarchy is the v1 freezer's.
    pub fn is_freezer(&self) -> bool {
        self.options.iter().any(|option| option == "freezer")
    }

    /// Turns a path inside the hierarchy into one below the mount point.
    pub fn inside(&self, path: &str) -> Option<String> {
        strip(&self.root, path)
    }
}

/// Takes the mounted part off a hierarchy's path: what is left begins with a slash.
pub(super) fn strip(root: &str, path: &str) -> Option<String> {
    let rest = if root == "/" { path } else { path.strip_prefix(root)? };
    match rest {
        "" => Some("/".to_owned()),
        // A path that leaves the cgroup namespace (`/../x`) is not below any mount of ours.
        rest if rest.starts_with('/') && !rest.split('/').any(|part| part == "..") => Some(rest.to_owned()),
        _ => None,
    }
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain + rest
}
