package model

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
)

// fingerprintBytes are too many for two contents to be given the same fingerprint on purpose.
const fingerprintBytes = 16

// ContentHash is a hash of all by which authz decides the policy, as far as it is written in
// the mesh: the content of a bundle is not. Which workloads it is for, and what holds while
// authz is away, is in their routes.
func (p *RegoPolicy) ContentHash() string {
	rest := *p // a field that is new decides until somebody says here that it does not
	rest.Meta, rest.Selector, rest.FailOpen, rest.BundleRefresh = Meta{}, nil, false, 0
	rest.Form, rest.ModuleFile, rest.ModuleLine = nil, "", 0
	rest.Module, rest.Fingerprint = "", ""
	return contentHash(rest, p.Module)
}

// contentHash is a hash of a policy, and of a text of it that is long.
func contentHash(policy any, text string) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(policy) // neither can fail: these are texts and numbers, and a hash takes all
	_, _ = io.WriteString(h, text)
	return hex.EncodeToString(h.Sum(nil)[:fingerprintBytes])
}
