//! Receipts: what a stop has ended, and what no kill of the herd reaches, as it has left the herd's cgroups.

use super::job::Job;
use super::outbox::Entries;
use super::reread::OURSELVES;
use super::supervisor::Supervisor;
use crate::kernel::orphans;
use crate::machine::ReplyTo;
use crate::model::status::Receipt;

impl Supervisor {
    /// Answers with a receipt, once a hand has found what lives outside. The herd's last receipt waits for no hand.
    pub(super) fn reply_receipt(&mut self, to: ReplyTo, mut receipt: Receipt) {
        if self.machine.is_over() {
            receipt.outside = orphans::outside_of(&self.tools.cgroups.herd_path());
            self.send_receipt(to, receipt);
        } else {
            self.hand(Job::FindOutside { to, receipt });
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
