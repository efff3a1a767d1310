//go:build !etcd

package etcdstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Open is an error: this program has no etcd.
func Open(context.Context, Config, Options) (ledger.Store, error) {
	return nil, errors.New("ledger: this writ-ca has no etcd; build one with go build -tags etcd ./cmd/writ-ca")
}

// Renew is an error too.
func Renew(context.Context, ledger.Store, string) error {
	return fmt.Errorf("%w: this writ-ca has no etcd", ErrRefused)
}

// Import is an error too.
func Import(context.Context, ledger.Store, ledger.Log) error {
	return errors.New("ledger: this writ-ca has no etcd; build one with go build -tags etcd ./cmd/writ-ca")
}
