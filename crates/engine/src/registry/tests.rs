use super::*;
use proptest::prelude::*;

fn open(dir: &std::path::Path) -> (Arc<Registry>, Opened) {
    Registry::open(Layout::new(dir)).unwrap()
}

fn name(text: &str) -> DistroName {
    DistroName::parse(text).unwrap()
}

fn add(registry: &Arc<Registry>, text: &str, created: u64) -> Result<DistroId, RegistryError> {
    let reservation = registry.reserve(name(text))?;
    let record = DistroFile {
        id: reservation.id,
        ..test_record(text, "base", created)
    };
    let dir = registry.layout().distro_partial(record.id);
    fs_err::create_dir(&dir).unwrap();
    state::store(&dir.join("distro.json"), &record)?;
    let id = record.id;
    registry.register(reservation, record, false)?;
    Ok(id)
}

fn names(registry: &Registry) -> Vec<String> {
    registry.list().iter().map(|d| d.name.to_string()).collect()
}

/// The rules after LIST-8, and LIST-1.
#[test]
fn the_default_follows_the_rules_and_leads_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(dir.path());
    assert!(matches!(
        registry.resolve(""),
        Err(RegistryError::NoDefault)
    ));
    let a = add(&registry, "a", 1).unwrap();
    let b = add(&registry, "b", 2).unwrap();
    add(&registry, "c", 3).unwrap();
    assert_eq!(registry.resolve("").unwrap().id, a);
    registry.set_default(b).unwrap();
    assert_eq!(names(&registry), ["b", "a", "c"]);
    registry.remove(b).unwrap();
    assert_eq!(names(&registry), ["a", "c"]);
    assert_eq!(registry.default_id(), Some(a));
    drop(registry);
    let (registry, opened) = open(dir.path());
    assert_eq!(names(&registry), ["a", "c"]);
    assert!(opened.warnings.is_empty() && opened.removed.is_empty());
    assert_eq!(registry.resolve("A").unwrap().id, a);
}

/// REG-2, REG-7: a name is taken while its distribution is made, and free again after a failure.
#[test]
fn a_reserved_name_is_taken_until_the_reservation_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(dir.path());
    let reservation = registry.reserve(name("Debian")).unwrap();
    assert!(matches!(
        registry.reserve(name("debian")),
        Err(RegistryError::InProgress { .. })
    ));
    assert!(matches!(
        registry.resolve("debian"),
        Err(RegistryError::InProgress { .. })
    ));
    let other = add(&registry, "other", 1).unwrap();
    assert!(registry.rename(other, name("DEBIAN")).is_err());
    drop(reservation);
    registry.rename(other, name("DEBIAN")).unwrap();
    assert!(matches!(
        registry.reserve(name("debian")),
        Err(RegistryError::Exists(_))
    ));
    registry.rename(other, name("debian")).unwrap();
}

#[test]
fn a_damaged_registry_is_set_aside_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(dir.path());
    let a = add(&registry, "a", 1).unwrap();
    let b = add(&registry, "b", 2).unwrap();
    registry.set_default(b).unwrap();
    let path = registry.layout().registry();
    let whole = fs_err::read(&path).unwrap();
    drop(registry);
    for cut in 0..whole.len() - 1 {
        fs_err::write(&path, &whole[..cut]).unwrap();
        let (registry, opened) = open(dir.path());
        assert_eq!(opened.warnings.len(), 1);
        assert!(opened.warnings[0].contains("registry.json"));
        assert_eq!(registry.default_id(), Some(a));
        assert_eq!(registry.list().len(), 2);
        assert_eq!(
            fs_err::read(path.with_extension("json.damaged")).unwrap(),
            &whole[..cut]
        );
    }
    fs_err::write(&path, "{\"format\":2}").unwrap();
    let error = Registry::open(Layout::new(dir.path())).unwrap_err();
    assert!(matches!(error, StateError::Newer { .. }));
    assert_eq!(fs_err::read(&path).unwrap(), b"{\"format\":2}");
}

#[test]
fn a_base_goes_with_its_last_user_unless_it_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(dir.path());
    let make = || {
        fs_err::write(registry.layout().base("base"), "x").unwrap();
        state::store(&registry.layout().base_file("base"), &BaseFile::default()).unwrap();
    };
    make();
    let a = add(&registry, "a", 1).unwrap();
    let b = add(&registry, "b", 2).unwrap();
    registry.remove(a).unwrap();
    assert!(registry.base("base").is_some());
    let pin = registry.pin_base("base");
    registry.remove(b).unwrap();
    assert!(registry.base("base").is_some());
    drop(pin);
    assert!(registry.base("base").is_none());
    assert_eq!(
        fs_err::read_dir(registry.layout().bases()).unwrap().count(),
        0
    );
    assert_eq!(
        fs_err::read_dir(registry.layout().distros())
            .unwrap()
            .count(),
        0
    );
}

#[derive(Clone, Debug)]
enum Op {
    Add(String),
    Rename(usize, String),
    Default(usize),
    Remove(usize),
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let text = "[aAbBcC]{1,2}";
    let op = prop_oneof![
        3 => text.prop_map(Op::Add),
        1 => (any::<usize>(), text).prop_map(|(i, n)| Op::Rename(i, n)),
        1 => any::<usize>().prop_map(Op::Default),
        1 => any::<usize>().prop_map(Op::Remove),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 0..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_sequence_keeps_names_unique_and_one_default(ops in ops()) {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = open(dir.path());
        let mut model: Vec<(DistroId, String)> = Vec::new();
        let mut default: Option<DistroId> = None;
        let taken = |model: &[(DistroId, String)], n: &str, except: Option<DistroId>| {
            model.iter().any(|(id, m)| m.eq_ignore_ascii_case(n) && Some(*id) != except)
        };
        for (step, op) in ops.into_iter().enumerate() {
            let pick = |i: usize| (!model.is_empty()).then(|| model[i % model.len()].0);
            match op {
                Op::Add(n) => {
                    let result = add(&registry, &n, step as u64);
                    prop_assert_eq!(result.is_err(), taken(&model, &n, None));
                    if let Ok(id) = result {
                        model.push((id, n));
                        default = default.or(Some(id));
                    }
                }
                Op::Rename(i, n) => if let Some(id) = pick(i) {
                    let result = registry.rename(id, name(&n));
                    prop_assert_eq!(result.is_err(), taken(&model, &n, Some(id)));
                    if result.is_ok() {
                        model.iter_mut().filter(|(m, _)| *m == id).for_each(|(_, m)| m.clone_from(&n));
                    }
                },
                Op::Default(i) => if let Some(id) = pick(i) {
                    registry.set_default(id).unwrap();
                    default = Some(id);
                },
                Op::Remove(i) => if let Some(id) = pick(i) {
                    registry.remove(id).unwrap();
                    model.retain(|(m, _)| *m != id);
                    if default == Some(id) {
                        default = model.first().map(|(m, _)| *m);
                    }
                },
                Op::Reopen => {
                    drop(registry);
                    let (again, opened) = open(dir.path());
                    prop_assert!(opened.warnings.is_empty() && opened.removed.is_empty());
                    registry = again;
                }
            }
            let mut want: Vec<String> = model.iter().map(|(_, n)| n.clone()).collect();
            if let Some(at) = model.iter().position(|(id, _)| Some(*id) == default) {
                let first = want.remove(at);
                want.insert(0, first);
            }
            prop_assert_eq!(names(&registry), want);
            prop_assert_eq!(registry.default_id(), default);
        }
    }
}
