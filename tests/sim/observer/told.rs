//! What is answered and told, against the truth.

use std::time::Duration;

use treeherd::machine::{AgentKey, Frost, Machine, Now, ReplyTo};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::Run;
use treeherd::model::request::{Answer, Request};
use treeherd::model::status::{Cause, Exit, Paused, Receipt, State};

use super::super::kernel::{Kernel, Tally};
use super::{Asking, Observer, subtrees};

impl Observer {
    pub(super) fn answered(&mut self, to: ReplyTo) {
        let asked = self.requests.get_mut(&to).unwrap_or_else(|| panic!("{to:?}: an answer to nobody"));
        assert!(!asked.is_answered, "{to:?}: answered twice: {:?}", asked.request);
        let is_dropped = asked.is_gone && matches!(asked.request, Request::Wait(_) | Request::Cleanup(_));
        assert!(!is_dropped, "{to:?}: nobody waits any more");
        asked.is_answered = true;
    }

    pub(super) fn check_answer(
        &mut self,
        machine: &Machine,
        kernel: &Kernel,
        now: Now,
        to: ReplyTo,
        answer: Option<&Answer>,
    ) {
        match (&self.requests[&to].request, answer) {
            (_, Some(Answer::Receipt(receipt))) => self.check_receipt(machine, kernel, now, to, receipt),
            (Request::Pause(_), Some(Answer::Agents(agents))) => {
                for agent in agents.iter().filter(|it| it.paused == Paused::Own && !it.state.has_ended()) {
                    let key = self.names[&agent.id];
                    let is_news = self.frost_asked.get(&key) == Some(&to) && !self.down.contains(&key);
                    assert!(!is_news || kernel.is_still(key), "{}: said to be paused, and it runs", agent.id);
                }
            }
            (Request::Resume(_), Some(Answer::Agents(agents))) => {
                for agent in agents.iter().filter(|it| it.paused != Paused::Own && !it.state.has_ended()) {
                    let key = self.names[&agent.id];
                    let is_news = self.frost_asked.get(&key) == Some(&to) && !self.down.contains(&key);
                    let dir = kernel.dirs.get(&key).filter(|_| is_news);
                    assert!(dir.is_none_or(|dir| dir.freeze == Frost::Thawed), "{}: said to be resumed", agent.id);
                }
            }
            (Request::Wait(_), Some(Answer::Agents(agents))) => {
                for agent in agents {
                    assert!(agent.state.has_ended(), "{}: said to have ended, it is {}", agent.id, agent.state);
                }
            }
            (Request::Cleanup(_), Some(Answer::Agents(agents))) => {
                let members = &self.requests[&to].members;
                for agent in agents {
                    let left = machine.key_of(&agent.id).filter(|key| members.contains(key));
                    assert_eq!(left, None, "{}: said to be forgotten", agent.id);
                }
            }
            (Request::Spawn(_) | Request::Restart(_), Some(Answer::Agent(agent))) => {
                let key = self.names[&agent.id];
                // A failure that was found before it was up is told with its start, and before the answer: no other end follows.
                let is_end_told = agent.pid.is_some() && self.told.contains(&(key, agent.run));
                if !is_end_told {
                    self.announced.insert(key);
                }
            }
            _ => {}
        }
    }

    pub(super) fn check_receipt(
        &mut self,
        machine: &Machine,
        kernel: &Kernel,
        now: Now,
        to: ReplyTo,
        receipt: &Receipt,
    ) {
        let mut counted = 0;
        let asked = &self.requests[&to];
        let of = |key: &AgentKey| {
            let id = self.names.iter().find(|(_, it)| *it == key).map(|(id, _)| id);
            receipt.agents.iter().find(|agent| Some(&agent.id) == id)
        };
        // At the bound it is answered though the hands have not told everything.
        let is_due = asked.kill_at.is_none_or(|at| now.mono >= at + self.config.kill_timeout);
        let is_late = is_due || receipt.agents.iter().any(|agent| agent.survivors > 0);
        for key in &asked.members {
            if is_late {
                // What it does not call a survivor is dead.
                let lives = kernel.processes.values().any(|it| it.agent == *key && !it.has_strayed);
                let is_named = of(key).is_none_or(|agent| agent.survivors > 0);
                assert!(!lives || is_named, "{key}: a receipt says that it ended, and it lives");
                continue;
            }
            let live: Vec<_> = kernel.within(*key).collect();
            assert!(live.is_empty(), "{key}: a receipt, and of it live {live:?}");
            let has_departed = kernel.processes.values().any(|it| it.agent == *key && it.has_departed);
            assert!(!has_departed, "{key}: a receipt, and its main process lives outside");
            assert!(!kernel.hanging.contains_key(key) && !self.spawning.contains(key), "{key}: a receipt, and a spawn");
            assert!(!kernel.dirs.contains_key(key), "{key}: a receipt, and its cgroup is there");
            let ended = self.forgotten.contains(key) || machine.key_of_state(*key).is_none_or(State::has_ended);
            assert!(ended, "{key}: a receipt, and it has not ended");
        }
        for (key, (live, before)) in &asked.exact {
            let after = kernel.tallies.get(key).copied().unwrap_or_default();
            let Some(id) = self.names.iter().find(|(_, it)| *it == key).map(|(id, _)| id) else { continue };
            let is_plain = Tally { our_deaths: 0, ..after } == Tally { our_deaths: 0, ..*before };
            // The kill of a run that was late, or was found in a failure, is counted by nobody.
            let is_ours = self.late.iter().chain(&self.judged).any(|(ended, _)| ended == key);
            if let (true, Some(agent)) =
                (is_plain && !is_ours && !is_late, receipt.agents.iter().find(|agent| agent.id == *id))
            {
                assert_eq!(agent.processes, *live, "{key}: the receipt counts what died: {agent:?}");
                counted += 1;
            }
        }
        let sum: u64 = receipt.agents.iter().map(|agent| agent.processes).sum();
        assert_eq!(receipt.processes, sum);
        if is_late {
            self.note("answered late");
        }
        if counted > 0 {
            self.note("exact receipts");
        }
    }

    /// Compares an event with the truth.
    pub(super) fn told(&mut self, machine: &Machine, kernel: &Kernel, now: Now, event: &Event) {
        self.note(event.kind.name());
        let Some(key) = event.agent.as_ref().and_then(|id| self.names.get(id)).copied() else { return };
        let run = event.run.unwrap_or_default();
        match event.kind {
            Kind::Started => {
                self.began_order(key);
                assert!(self.started.insert((key, run)), "{key}: run {run} started twice");
                self.health.entry((key, run)).or_default().is_going = true;
                self.announced.insert(key);
            }
            Kind::Ready => self.told_ready(machine, key, run),
            Kind::Stalled => self.told_stalled(machine, kernel, key, event),
            Kind::Stirred => self.told_stirred(key, run),
            Kind::Registered => {
                self.began_order(key);
                self.announced.insert(key);
            }
            Kind::Queued => {
                self.queued.insert(key);
                self.announced.insert(key);
            }
            Kind::Stopping => {
                let below = subtrees(machine, &[key]);
                for key in &below {
                    self.paused.remove(key);
                }
                if event.message.contains("the end of") {
                    self.cascading.insert(key);
                }
                for key in &below {
                    self.recovery.leave(*key);
                }
                self.down.extend(below);
            }
            Kind::Paused => {
                assert!(kernel.is_frozen(key), "{key}: told to be paused, and the kernel says it is not frozen");
                // A stop thaws it presently; the pause that was under way is told all the same.
                if !self.down.contains(&key) {
                    self.paused.insert(key);
                }
            }
            // It is thawed presently.
            Kind::Resumed | Kind::PressureResumes => {
                self.paused.remove(&key);
            }
            Kind::Restarting => {
                assert!(!self.down.contains(&key), "{key}: to be restarted, and somebody wants its end");
                self.backoffs.insert(key, Duration::from_millis(event.delay_ms.unwrap()));
                self.announced.insert(key);
                self.restarting(machine, now, key);
            }
            Kind::Escalated => self.escalated(machine, now, key, &event.message),
            Kind::Removed => self.recovery.removed(key),
            Kind::GaveUp => {
                self.announced.remove(&key);
            }
            Kind::Completed | Kind::Failed | Kind::Terminated => {
                self.announced.remove(&key);
                self.check_end(machine, kernel, key, run, event);
                self.ended_order(key, event);
                self.check_words(kernel, now, key, run, event);
            }
            _ => {}
        }
    }

    /// A run that has said something fatal and ended on its own is not told to have ended well, unless it took too long to find out.
    fn check_words(&mut self, kernel: &Kernel, now: Now, key: AgentKey, run: Run, event: &Event) {
        let is_fatal = kernel.fatal.contains(&(key, run));
        let is_heard = kernel.heard.contains(&(key, run));
        let is_found = event.exit.as_ref().is_some_and(|exit| exit.cause == Cause::Output);
        assert!(!is_found || is_fatal, "{key}: run {run} has said nothing fatal");
        let read_for = self.reading.get(&(key, run)).map(|since| now.mono.since(*since));
        if is_found && read_for.is_some() {
            self.note("last words");
        }
        let is_late = read_for.is_some_and(|time| time >= Duration::from_secs(10));
        assert!(
            event.kind != Kind::Completed || !is_heard || is_late,
            "{key}: run {run} has completed, its words say no"
        );
    }

    pub(super) fn check_end(&mut self, machine: &Machine, kernel: &Kernel, key: AgentKey, run: Run, event: &Event) {
        let exit = event.exit.as_ref().expect("an end has its record");
        if run == Run(0) || !self.started.contains(&(key, run)) {
            match event.kind {
                Kind::Failed if self.known[&key].spec.is_group() && exit.cause == Cause::Child => self.note("child"),
                Kind::Failed if exit.cause == Cause::Dependency => self.check_dependency(machine, key, exit),
                Kind::Failed => assert_eq!(exit.cause, Cause::Exec, "{key}: it never started"),
                Kind::Terminated => assert!(run == Run(0), "{key}: run {run} never started"),
                _ => panic!("{key}: completed, and it never started"),
            }
            assert!(run == Run(0) || self.told.insert((key, run)), "{key}: run {run} ended twice");
            return;
        }
        assert!(self.told.insert((key, run)), "{key}: run {run} ended twice");
        // A run fails for a worker that it has lost, if its policy says so.
        let is_workers = exit.cause == Cause::Oom && kernel.deaths.get(&(key, run)).is_none_or(|death| !death.is_oom);
        if exit.cause.is_verdict() || is_workers {
            assert_eq!(event.kind, Kind::Failed, "{key}: run {run} was found in a failure");
            assert!(!self.is_asked(key, run), "{key}: run {run} is judged, and its end was asked for");
            self.judged.insert((key, run));
            self.check_verdict(machine, key, run, exit.cause);
            self.note(exit.cause.name());
            return;
        }
        let death = kernel.deaths.get(&(key, run)).unwrap_or_else(|| panic!("{key}: run {run} is said to have ended"));
        let was_asked = self.exits.get(&(key, run)).copied().unwrap_or_else(|| panic!("{key}: nobody told its exit"));
        if event.kind != Kind::Failed {
            assert!(kernel.in_run(key, run).next().is_none(), "{key}: {} while its processes live", event.kind);
        }
        if exit.cause == Cause::Lost {
            assert!(self.is_unseen(key, run), "{key}: run {run} is told as lost, and its end could be seen");
            assert!(!was_asked && event.kind == Kind::Failed, "{key}: run {run}: what is lost has failed");
            self.note("lost");
            return;
        }
        let has_crashed = matches!(self.left.get(&(key, run)), Some(Exit::Signal { .. }));
        let is_asked = self.is_asked(key, run);
        let is_good = death.exit == Exit::Status(0) && !death.is_oom;
        if is_good && has_crashed && !was_asked && !is_asked {
            // Whoever puts itself into the background has its work done by those that it leaves behind.
            assert_eq!((event.kind, exit.cause), (Kind::Failed, Cause::Signal), "{key}: run {run}: {exit:?}");
            self.note("crash of what was left behind");
            return;
        }
        let allowed: &[Kind] = match (was_asked, is_asked, is_good) {
            // Nobody asked: it ended by itself, and that is what is told.
            (false, false, true) => &[Kind::Completed],
            (_, _, false) if !was_asked => &[Kind::Failed],
            // It ended well, and what it left behind was ended on request.
            (false, true, true) => &[Kind::Completed, Kind::Terminated],
            (true, ..) => &[Kind::Terminated],
            (false, ..) => unreachable!("all are told apart"),
        };
        // A run that is killed for its late start is not asked to make place for the next one, too.
        if death.is_ours && (!was_asked || exit.cause == Cause::Exec) {
            // Its spawn took too long, and its kill came when it had just succeeded.
            assert!(self.late.contains(&(key, run)), "{key}: we killed run {run}, and nobody asked");
            assert_eq!((event.kind, exit.cause), (Kind::Failed, Cause::Exec), "{key}: run {run} was too late");
            self.note("late spawns");
            return;
        }
        assert!(allowed.contains(&event.kind), "{key} run {run}: told {}, true is {allowed:?}: {death:?}", event.kind);
        let is_named = (event.kind == Kind::Terminated) == (exit.cause == Cause::Terminated);
        assert!(is_named, "{key} run {run}: {} with the cause {}", event.kind, exit.cause);
        if event.kind == Kind::Failed {
            assert_eq!(exit.cause == Cause::Oom, death.is_oom, "{key}: the OOM killer is named when it did it");
        }
    }
}
