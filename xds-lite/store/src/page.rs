//! The health of a store as the admin API has it.

use isthmus_model::admin::Store;

use crate::Report;

impl From<Report> for Store {
    fn from(report: Report) -> Store {
        let Report {
            store,
            file,
            usable,
            problem,
            behind,
            damaged_files,
            lost_records,
            lost,
            damage,
            set_aside,
            too_large,
        } = report;
        Store {
            store: store.to_owned(),
            file: file.display().to_string(),
            usable,
            problem,
            behind,
            damaged_files,
            lost_records,
            lost,
            damage,
            set_aside: set_aside.map(|path| path.display().to_string()),
            too_large,
        }
    }
}
