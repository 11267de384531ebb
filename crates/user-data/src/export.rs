//! Reads all that is held of a user.

use std::collections::HashMap;

use herald_model::{Device, FollowVersion, Post, PostId, UserId, UserKey};
use tokio::sync::mpsc;

use crate::{Error, Result, UserData};

/// Users, follows or posts read at once.
const PAGE: usize = 256;

/// A record of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The user; the first record.
    User(UserId),
    /// Whether pushes are sent.
    Preferences {
        /// Whether the user receives pushes.
        push_enabled: bool,
    },
    /// A device, with its secrets.
    Device(Box<Device>),
    /// An author whom the user follows.
    Following {
        /// The author.
        author: UserId,
        /// Whether notifications are on.
        notify: bool,
    },
    /// A follower of the user.
    Follower {
        /// The follower.
        follower: UserId,
        /// Whether notifications are on.
        notify: bool,
    },
    /// An author whom the user has muted.
    MutedAuthor(UserId),
    /// A post of the user whose text is held; deleted ones too, until their text is removed. Oldest first.
    Post(Box<Post>),
    /// A post on the user's timeline, oldest first.
    TimelineEntry(PostId),
}

impl UserData {
    /// The key of a user; `None` for an unknown one.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn find(&self, id: &UserId) -> Result<Option<UserKey>> {
        let found = self.stores.users.find(std::slice::from_ref(id)).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// Sends all that is held of a user, in the order of [`Record`]. No snapshot: what changes meanwhile may be in it
    /// or not. Waits while the channel is full.
    ///
    /// # Errors
    /// [`Error::Abandoned`] if the receiver was dropped; other errors if a store can't be read.
    pub async fn export(&self, id: UserId, user: UserKey, records: &mpsc::Sender<Record>) -> Result<()> {
        let export = Export {
            data: self,
            user,
            records,
        };
        export.send(Record::User(id)).await?;
        let preferences = self.stores.preferences.of(&[user]).await?;
        let preferences = preferences.into_iter().next().unwrap_or_default();
        let push_enabled = preferences.push_enabled;
        export.send(Record::Preferences { push_enabled }).await?;
        for device in self.stores.devices.of(&[user]).await?.into_iter().flatten() {
            export.send(Record::Device(Box::new(device))).await?;
        }
        export.send_following().await?;
        export.send_followers().await?;
        let muted: Vec<_> = preferences.muted.into_iter().collect();
        for page in muted.chunks(PAGE) {
            for author in export.ids(page).await? {
                export.send(Record::MutedAuthor(author)).await?;
            }
        }
        export.send_posts().await?;
        export.send_timeline().await
    }
}

struct Export<'a> {
    data: &'a UserData,
    user: UserKey,
    records: &'a mpsc::Sender<Record>,
}

impl Export<'_> {
    async fn send(&self, record: Record) -> Result<()> {
        self.records.send(record).await.map_err(|_| Error::Abandoned)
    }

    /// The ids of users; users without an id are left out.
    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<UserId>> {
        let ids = self.data.stores.users.ids(keys).await?;
        Ok(ids.into_iter().flatten().collect())
    }

    async fn send_following(&self) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.data.stores.follows.following(self.user, after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.author);
            let keys: Vec<_> = page.iter().map(|following| following.author).collect();
            let ids = self.data.stores.users.ids(&keys).await?;
            for (following, id) in page.iter().zip(ids) {
                if let Some(author) = id {
                    let notify = following.notify;
                    self.send(Record::Following { author, notify }).await?;
                }
            }
        }
    }

    async fn send_followers(&self) -> Result<()> {
        let (mut version, mut after): (Option<FollowVersion>, _) = (None, None);
        loop {
            let follows = &self.data.stores.follows;
            let page = follows.followers(self.user, version, after, PAGE).await?;
            let keys: Vec<_> = page.followers.iter().collect();
            let ids = self.data.stores.users.ids(&keys).await?;
            let ids: HashMap<_, _> = keys.iter().zip(ids).collect();
            for key in &keys {
                if let Some(Some(follower)) = ids.get(key) {
                    let notify = page.notify.contains(*key);
                    let follower = follower.clone();
                    self.send(Record::Follower { follower, notify }).await?;
                }
            }
            if page.complete || page.last.is_none() {
                return Ok(());
            }
            (version, after) = (Some(page.version), page.last);
        }
    }

    /// Rebuilds the timeline first if entries are missing, as a read by the user would.
    async fn send_timeline(&self) -> Result<()> {
        let (timelines, user) = (&self.data.stores.timelines, &[self.user]);
        let mut found = timelines.read(user).await?;
        if found.iter().any(|timeline| !timeline.complete) {
            timelines.rebuild(user).await?;
            found = timelines.read(user).await?;
        }
        for post in found.into_iter().flat_map(|timeline| timeline.posts) {
            self.send(Record::TimelineEntry(post)).await?;
        }
        Ok(())
    }

    async fn send_posts(&self) -> Result<()> {
        let posts = &self.data.stores.posts;
        let mut after = None;
        loop {
            let page = posts.of_author(self.user, after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            for post in posts.get(&page).await?.into_iter().flatten() {
                // A text can be removed between the two reads.
                if !post.is_erased() {
                    self.send(Record::Post(Box::new(post))).await?;
                }
            }
        }
    }
}
