package ca

import (
	"context"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

// watchDocuments calls f with what changes among the documents whose keys begin with
// prefix, until ctx ends, whose error it returns. When watching or f fails it calls
// failed and begins anew: all tells f that an update has every document there is. The
// pause before doubles from least up to most while f is not reached.
func watchDocuments(ctx context.Context, store ledger.Store, prefix string, least, most time.Duration, failed func(error), f func(u ledger.Update, all bool) error) error {
	for wait := least; ; wait = min(2*wait, most) {
		all := true
		err := store.Watch(ctx, prefix, func(u ledger.Update) error {
			first := all
			all, wait = false, least
			return f(u, first)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
