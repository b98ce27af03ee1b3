//! Receipts: what a stop has ended, and what no kill of the herd reaches, as it has left the herd's cgroups.

use super::job::Job;
use super::outbox::Entries;
use super::reread::OURSELVES;
use super::supervisor::Supervisor;
use crate::kernel::orphans::Search;
use crate::machine::ReplyTo;
use crate::model::status::Receipt;
use crate::model::survivor::Outsider;

impl Supervisor {
    /// Answers with a receipt, once a hand has found what lives outside.
    pub(super) fn reply_receipt(&mut self, to: ReplyTo, receipt: Receipt) {
        self.receipts.insert(to, receipt);
        self.hand(Job::FindOutside(to, Search::default()));
    }

    /// A hand has found what lives outside.
    pub(super) fn complete_receipt(&mut self, to: ReplyTo, found: Vec<Outsider>) {
        if let Some(mut receipt) = self.receipts.remove(&to) {
            receipt.outside = found;
            self.send_receipt(to, receipt);
        }
    }

    /// Completes the receipts that are still to be answered: the herd has ended, and no hand is waited for.
    pub(super) fn complete_receipts(&mut self) {
        for to in self.receipts.keys().copied().collect::<Vec<_>>() {
            let (herd, own) = (self.tools.cgroups.herd_path(), self.tools.own_processes());
            let mut search = Search::default();
            let found = std::iter::repeat_with(|| search.step(&herd, &own)).find_map(|found| found);
            self.complete_receipt(to, found.unwrap_or_default());
        }
    }

    /// Answers with a receipt that is complete.
    pub(super) fn send_receipt(&mut self, to: ReplyTo, mut receipt: Receipt) {
        if to == OURSELVES {
            return receipt.outside.iter().for_each(|it| tracing::warn!("not ended, as it has left the herd: {it}"));
        }
        let agents = std::mem::take(&mut receipt.agents);
        let text = serde_json::to_string(&receipt).unwrap_or_default();
        let around = text.split_once("[]").map(|(head, tail)| (format!("{head}["), format!("]{tail}")));
        let (head, tail) = around.expect("a receipt without agents has an empty list");
        self.reply_list(to, (&head, &tail), Entries::Receipts(agents.into_iter()));
    }
}
