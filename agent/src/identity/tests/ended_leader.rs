//! A process whose first thread has ended lives on in its others.

use super::*;

#[test]
fn a_process_whose_first_thread_has_ended_is_alive() {
    let name = "a_process_whose_first_thread_has_ended_is_alive";
    let Some(layout) = layout(name) else { return };
    // Ends its first thread alone (system call 60 on x86-64, 93 on aarch64).
    let number = if cfg!(target_arch = "x86_64") { 60 } else { 93 };
    let script = format!(
        "import ctypes,threading,time\n\
         threading.Thread(target=time.sleep,args=(60,)).start()\n\
         ctypes.CDLL(None).syscall({number},0)"
    );
    let child = Command::new("python3")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::null())
        .spawn();
    let Ok(child) = child.map(Own) else {
        eprintln!("SKIPPED {name}: there is no python3");
        return;
    };
    let tables = tables(layout);
    let process = id_of(&tables, child.pid());
    let state = || Stat::read(child.pid()).unwrap();
    for _ in 0..1000 {
        if state().state == 'Z' {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!((state().state, state().threads), ('Z', 2));
    let facts = tables.facts(&Target::Process(process), &ScopeRoots::All);
    assert!(facts.alive, "{}", facts.detail);
    let member = facts
        .members
        .iter()
        .find(|member| member.process.pid == child.pid());
    assert!(member.unwrap().exe.contains("python"), "{member:?}");
}
