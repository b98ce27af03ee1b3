//! What a key means: a move on the screen, a question, or a request.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::view::{Order, View};
use crate::api::method::{Call, Ending, OfAgent, OfTarget};
use crate::model::id::AgentId;
use crate::model::request::Target;

/// What somebody wants who pressed a key.
pub(super) enum Wish {
    Leave,
    Ask(Box<Call>),
}

/// The keys, for the last line.
pub(super) const KEYS: &str = "↑↓ select   p pause   r resume   R restart   t terminate   K kill   s sort   q leave";

impl View {
    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c')).then_some(Wish::Leave);
        }
        self.note = None;
        if let Some((_, call)) = self.question.take() {
            return (key.code == KeyCode::Char('y')).then_some(Wish::Ask(Box::new(call)));
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Wish::Leave),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::PageUp => self.table.scroll_up_by(10),
            KeyCode::PageDown => self.table.scroll_down_by(10),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            KeyCode::Char('s') => self.sort(self.order.next()),
            KeyCode::Char(letter) => return self.act(letter),
            _ => {}
        }
        None
    }

    fn act(&mut self, letter: char) -> Option<Wish> {
        let id = self.selected()?.id.clone();
        let target = |id: AgentId| Target::Ids(vec![id]);
        let call = match letter {
            'p' => Call::Pause(OfTarget { target: target(id) }),
            'r' => Call::Resume(OfTarget { target: target(id) }),
            'R' => Call::Restart(OfAgent { id }),
            't' | 'K' => {
                let (how, grace_ms) = if letter == 'K' { ("Kill", Some(0)) } else { ("Terminate", None) };
                let question = format!("{how} {id} and all below it? y: yes, any other key: no");
                self.question = Some((question, Call::Terminate(Ending { target: target(id), grace_ms })));
                return None;
            }
            _ => return None,
        };
        Some(Wish::Ask(Box::new(call)))
    }
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Tree => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Tree,
        }
    }
}
