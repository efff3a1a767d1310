// Package accesslog takes what Envoys report of the requests that they decide
// themselves (envoy.service.accesslog.v3): refusals, would-be refusals of policies that
// only observe, and a sample of others if somebody asked for one.
//
// A report is what its sender says. Over TCP that is a workload with a certificate, and
// it is believed about itself only: whatever it says, the request was one to it.
package accesslog
