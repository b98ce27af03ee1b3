use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    (dir, path)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_state_dir_is_made_for_us_alone_and_claimed_once() {
    let (_guard, path) = temporary();
    let claim = claim_state_dir(&path).unwrap();
    assert_eq!(mode(&path), 0o711);
    assert_eq!(mode(&path.join("lock")), 0o600);
    assert_eq!(claim_state_dir(&path).unwrap_err().code, Code::InUse);
    drop(claim);
    claim_state_dir(&path).unwrap();
}

#[test]
fn a_state_dir_that_others_could_command_is_refused() {
    let (guard, path) = temporary();
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(claim_state_dir(&path).unwrap_err().remedy.unwrap().contains("go-w"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let link = guard.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(claim_state_dir(&link).unwrap_err().message.contains("symbolic link"));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(claim_state_dir(&path).unwrap_err().message.contains("belongs to user 65534"));
    }
    assert!(claim_state_dir(&guard.path().join("no/parent")).unwrap_err().remedy.is_some());
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let (_guard, path) = temporary();
    let claim = claim_state_dir(&path).unwrap();
    let socket = path.join("s.sock");
    let living = bind(&claim, &socket, None, SOCKET_MODE).unwrap();
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(bind(&claim, &socket, None, SOCKET_MODE).unwrap_err().code, Code::InUse);
    drop(living);
    assert!(socket.exists(), "a socket stays where it was when its process is gone");
    bind(&claim, &socket, None, SOCKET_MODE).unwrap();
}

#[test]
fn a_file_in_the_way_of_the_socket_is_left_alone() {
    let (_guard, path) = temporary();
    let claim = claim_state_dir(&path).unwrap();
    let file = path.join("s.sock");
    fs::write(&file, "precious").unwrap();
    let error = bind(&claim, &file, None, SOCKET_MODE).unwrap_err();
    assert!(error.message.contains("in the way"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_socket_path_has_107_bytes_at_most() {
    let (_guard, path) = temporary();
    let claim = claim_state_dir(&path).unwrap();
    let room = 107 - path.as_os_str().len() - 1;
    bind(&claim, &path.join("x".repeat(room)), None, SOCKET_MODE).unwrap();
    let error = bind(&claim, &path.join("x".repeat(room + 1)), None, SOCKET_MODE).unwrap_err();
    assert_eq!(error.code, Code::BadValue);
    assert!(error.message.contains("has 108 bytes"), "{error}");
}

#[test]
fn a_socket_goes_to_its_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let (_guard, path) = temporary();
    let claim = claim_state_dir(&path).unwrap();
    let socket = path.join("s.sock");
    let listener = bind(&claim, &socket, Some(4242), SOCKET_MODE).unwrap();
    assert_eq!(fs::symlink_metadata(&socket).unwrap().gid(), 4242);
    drop(listener);
}
