use super::*;

const UNIFIED: &str = "\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
";
const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/my\\040pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const V1_ONLY: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
const CONTAINER: &str = "35 24 0:30 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";

fn v1(mount: &str) -> Binding {
    Binding::V1 { mount: PathBuf::from(mount) }
}

#[test]
fn a_unified_host_binds_every_controller_to_cgroup2() {
    let host =
        Host::from_text(UNIFIED, "0::/user.slice\n", "6.12.117-cloud", "cpuset cpu io memory hugetlb pids\n").unwrap();
    assert_eq!((host.layout, host.cgroup2.as_path()), (Layout::Unified, Path::new("/sys/fs/cgroup")));
    assert_eq!(host.own_cgroup, "/user.slice");
    assert!(host.bindings.values().all(|binding| *binding == Binding::V2));
    assert_eq!(host.enforcer(Knob::MemoryHigh).unwrap(), "memory.high");
}

#[test]
fn a_hybrid_host_binds_each_controller_to_where_it_is() {
    let own = "12:memory:/x\n1:name=systemd:/\n0::/\n";
    let host = Host::from_text(HYBRID, own, "6.18.44-fc-v669", "hugetlb\n").unwrap();
    assert_eq!((host.layout, host.cgroup2.as_path()), (Layout::Hybrid, Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(*host.binding(Controller::Hugetlb), Binding::V2);
    assert_eq!(host.own_v1, BTreeMap::from([(PathBuf::from("/sys/fs/cgroup/memory"), "/x".to_owned())]));
    assert_eq!(*host.binding(Controller::Memory), v1("/sys/fs/cgroup/memory"));
    assert_eq!(*host.binding(Controller::Cpu), v1("/sys/fs/cgroup/cpu,cpuacct"), "co-mounted with cpuacct");
    assert_eq!(*host.binding(Controller::Io), v1("/sys/fs/cgroup/blkio"), "io is called blkio on v1");
    assert_eq!(*host.binding(Controller::Pids), v1("/sys/fs/cgroup/my pids"), "mountinfo escapes blanks");
    assert!(matches!(host.binding(Controller::Cpuset), Binding::Absent { .. }));
    assert_eq!(host.enforcer(Knob::MemoryMax).unwrap(), "memory.limit_in_bytes");
}

#[test]
fn a_limit_that_nothing_enforces_is_refused_with_its_controller_and_a_remedy() {
    let mut host = Host::from_text(HYBRID, "0::/\n", "6.18.44", "hugetlb\n").unwrap();
    for knob in [
        Knob::MemoryHigh,
        Knob::MemoryLow,
        Knob::MemoryMin,
        Knob::MemoryOomGroup,
        Knob::MemorySwapMax,
        Knob::IoWeight,
        Knob::CpusetCpus,
        Knob::Hugetlb2MbMax,
    ] {
        let error = host.enforcer(knob).expect_err(knob.name());
        assert_eq!(error.code, Code::LimitNotOffered);
        assert!(error.message.contains(knob.controller().name()), "{error}");
        assert!(error.remedy.is_some());
    }
    host.extras = Extras { memsw: true, bfq: true, hugepages_2mb: true, hugepages_1gb: false };
    assert!(host.enforcer(Knob::MemorySwapMax).is_ok());
    assert!(host.enforcer(Knob::IoWeight).is_ok());
    assert!(host.enforcer(Knob::Hugetlb2MbMax).is_ok());
    assert!(host.enforcer(Knob::Hugetlb1GbMax).is_err());
}

#[test]
fn without_cgroup2_or_before_5_14_the_host_is_refused() {
    for (mounts, own, release, word) in [
        (V1_ONLY, "4:memory:/\n", "6.1.0", "cgroup2"),
        (V1_ONLY, "0::/\n", "6.1.0", "cgroup2"),
        (UNIFIED, "0::/\n", "5.13.19", "5.13.19"),
        (UNIFIED, "0::/../elsewhere\n", "6.1.0", "cgroup2"),
    ] {
        let error = Host::from_text(mounts, own, release, "memory").expect_err(word);
        assert_eq!(error.code, Code::Unsupported);
        assert!(error.message.contains(word) && error.remedy.is_some(), "{error}");
    }
    assert!(Host::from_text(UNIFIED, "0::/\n", "not a version", "").is_err());
}

#[test]
fn in_a_container_paths_are_counted_from_what_is_mounted() {
    let host = Host::from_text(CONTAINER, "0::/docker/abc/init\n", "6.1.0", "memory pids\n").unwrap();
    assert_eq!(host.own_cgroup, "/init");
    assert_eq!(host.below_mount("/docker/abc").unwrap(), "/");
    assert_eq!(host.below_mount("/docker/abcd"), None, "a sibling with a longer name is not inside");
    let namespaced = CONTAINER.replace("/docker/abc", "/");
    assert_eq!(Host::from_text(&namespaced, "0::/\n", "6.1.0", "").unwrap().own_cgroup, "/");
}

#[test]
fn a_release_may_have_two_or_three_numbers_and_any_tail() {
    let version = |major, minor, patch| Some(KernelVersion { major, minor, patch });
    for (release, expected) in [
        ("6.18.44-fc-v669", version(6, 18, 44)),
        ("6.1-rc3", version(6, 1, 0)),
        ("5.15.0+", version(5, 15, 0)),
        ("6.1.176.1-microsoft", version(6, 1, 176)),
        ("6", None),
        ("", None),
    ] {
        assert_eq!(KernelVersion::from_release(release), expected, "{release}");
    }
}
